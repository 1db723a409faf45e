"""The processes of a training run: `python -m tsugiki.pretrain.training.worker JOB.json PROCESSES`.

This process imports torch and Megatron once and forks one rank per process of the layout: importing
takes seconds, forking milliseconds, and the ranks share the memory of the code. With a GPU, which does
not survive a fork, every rank is a process of its own. The ranks' standard error goes to a file each.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from tsugiki.experiment.errors import TsugikiError
from tsugiki.experiment.parent import die_with_parent
from tsugiki.pretrain.runtime.job import INTERRUPTED_EXIT_CODE, TrainJob, log_path, reserve_error, write_error
from tsugiki.pretrain.runtime.signals import STOP_SIGNALS, StopRequest, held_back
from tsugiki.pretrain.runtime.world import World

_GRACE_SECONDS = 10.0


def train(job: TrainJob, world: World, stop: StopRequest, store: Any = None) -> bool:
    """Train as one rank. Returns whether the run is finished (False: it was asked to stop)."""
    import torch

    from tsugiki.pretrain.runtime.process_groups import initialise
    from tsugiki.pretrain.training.guard import collective_timeout
    from tsugiki.pretrain.training.trainer import Trainer

    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(job.config.threads or max(1, cores // world.size))
    timeout = collective_timeout(job.config.watchdog_seconds)
    initialise(world, job.config.parallel, job.seed, store, timeout)
    try:
        return Trainer(job, world, stop).run()
    finally:
        with contextlib.suppress(Exception):
            torch.distributed.destroy_process_group()


def rank_main(job: TrainJob, rank: int, size: int, port: int, stop: StopRequest) -> int:
    """A rank from its start to its exit status; the stop request is installed."""
    die_with_parent()
    reserve_error(job.work_dir, rank)
    log = log_path(job.work_dir, rank)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

        import_megatron()
        store = TCPStore(
            "127.0.0.1", port, size, is_master=False, timeout=timedelta(minutes=5), wait_for_workers=False
        )
        finished = train(job, World(rank, size, rank), stop, store)
    except TsugikiError as error:
        write_error(job.work_dir, rank, error)
        print(error, file=sys.stderr)
        return error.exit_code
    except BaseException as error:  # the launcher must learn of every end of a rank
        write_error(job.work_dir, rank, error)
        traceback.print_exc()
        return 1
    return 0 if finished else INTERRUPTED_EXIT_CODE


def main() -> int:
    """Start the ranks, stop all when one fails, pass signals on. Returns the exit status."""
    stop = StopRequest()
    stop.install()
    die_with_parent()
    job = TrainJob.model_validate_json(Path(sys.argv[1]).read_bytes())
    size = int(sys.argv[2])
    if len(sys.argv) == 5:  # a rank of its own, with a GPU
        return rank_main(job, int(sys.argv[3]), size, int(sys.argv[4]), stop)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for GPUs must not initialise them here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

    # The rendezvous socket listens now; the server, a thread, starts after the last fork. A thread inside
    # the C library while this process forks would leave its lock taken in the child for ever.
    listener = socket.create_server(("127.0.0.1", 0), backlog=max(128, size))
    port = listener.getsockname()[1]
    log_path(job.work_dir, 0).parent.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        with held_back():
            ranks = [_spawned(rank, size, port) for rank in range(size)]
    else:
        import_megatron()
        import tsugiki.pretrain.training.trainer  # noqa: F401

        # Megatron collects garbage at every checkpoint; what is imported is none, and stays shared.
        gc.freeze()
        ranks = [_forked(job, rank, size, listener, stop) for rank in range(size)]
    store = TCPStore(
        "127.0.0.1", port, size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    status = _supervise(ranks, stop)
    del store
    return status


def _forked(job: TrainJob, rank: int, size: int, listener: socket.socket, stop: StopRequest) -> int:
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    die_with_parent(parent)
    port = listener.getsockname()[1]
    listener.close()
    code = 1
    try:
        code = rank_main(job, rank, size, port, stop)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _spawned(rank: int, size: int, port: int) -> int:
    command = [
        sys.executable,
        "-P",
        "-m",
        "tsugiki.pretrain.training.worker",
        *sys.argv[1:3],
        str(rank),
        str(port),
    ]
    return subprocess.Popen(command).pid


def _supervise(ranks: list[int], stop: StopRequest) -> int:
    """Wait for all ranks; when one fails, give the others a moment and end them.

    A stop that was asked for before is passed on as well.
    """

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    alive = set(ranks)
    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    if stop.requested:
        pass_on(signal.SIGTERM, None)
    worst = 0
    deadline: float | None = None
    while alive:
        for pid in list(alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            alive.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, INTERRUPTED_EXIT_CODE) and worst in (0, INTERRUPTED_EXIT_CODE):
                worst = code
                print(f"rank {ranks.index(pid)} ended with {code}", file=sys.stderr, flush=True)
                deadline = time.monotonic() + _GRACE_SECONDS
            elif code == INTERRUPTED_EXIT_CODE and worst == 0:
                worst = code
        if deadline is not None and time.monotonic() > deadline:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return worst if worst >= 0 else 128 - worst


if __name__ == "__main__":
    sys.exit(main())
