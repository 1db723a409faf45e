"""The processes of a training run: `python -m tsugiki.pretrain.training.worker JOB.json PROCESSES`.

This process imports torch and Megatron once and forks one rank per process of the layout: importing
takes seconds, forking milliseconds, and the ranks share the memory of the code. With a GPU, which does
not survive a fork, every rank is a process of its own. The ranks' standard error goes to a file each.
"""

from __future__ import annotations

import atexit
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

from tsugiki.experiment.errors import TrainingError, TsugikiError
from tsugiki.experiment.parent import die_with_parent
from tsugiki.pretrain.runtime.environment import set_variables
from tsugiki.pretrain.runtime.job import (
    FOLLOWED_EXIT_CODE,
    INTERRUPTED_EXIT_CODE,
    PeerFailedError,
    TrainJob,
    log_path,
    reserve_error,
    write_error,
)
from tsugiki.pretrain.runtime.signals import STOP_SIGNALS, StopRequest, held_back
from tsugiki.pretrain.runtime.world import World

_GRACE_SECONDS = 12.0
"""More than the ranks take to write their stacks and agree on who failed first."""
_FOLLOW_SECONDS = 4.0
"""The same once they have agreed."""
_RECORDED_COLLECTIVES = "2000"


def train(job: TrainJob, world: World, stop: StopRequest, store: Any = None) -> bool:
    """Train as one rank. Returns whether the run is finished (False: it was asked to stop)."""
    import torch

    from tsugiki.pretrain.checkpoint.writer import reason
    from tsugiki.pretrain.runtime.allocator import keep_freed_memory
    from tsugiki.pretrain.runtime.kernels import make_deterministic
    from tsugiki.pretrain.runtime.peers import connect, write_state
    from tsugiki.pretrain.runtime.process_groups import barrier, initialise
    from tsugiki.pretrain.training.guard import collective_timeout
    from tsugiki.pretrain.training.preference.reference_pass import read_pairs
    from tsugiki.pretrain.training.trainer import Trainer

    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(job.config.threads or max(1, cores // world.size))
        keep_freed_memory()
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED_COLLECTIVES)
    if job.config.deterministic:
        make_deterministic()
    initialise(world, job.config.parallel, job.seed, store, collective_timeout(job.config))
    peers = connect(world, lambda: write_state(log_path(job.work_dir, world.rank).parent, world.rank))
    # On any failure the collectives are not torn down: NCCL would wait there for peers that wait for this rank.
    try:
        finished = (
            Trainer(job, world, stop, peers).run()
            if job.purpose == "train"
            else read_pairs(job, world, stop, peers)
        )
    except BaseException as error:
        if peers.failed(error):
            raise
        traceback.print_exception(error)
        raise PeerFailedError(
            "another rank failed before this one", where=f"rank {world.rank}", got=reason(error)
        ) from error
    peers.goodbye()
    barrier()
    with contextlib.suppress(Exception):
        torch.distributed.destroy_process_group()
    return finished


def leave_without_teardown(error: BaseException) -> None:
    """End this process with the error's status once the command line has said it: neither the interpreter's end nor a
    tracker may wait for what no longer comes."""
    faulthandler.dump_traceback_later(_GRACE_SECONDS, exit=True)
    atexit.register(os._exit, error.exit_code if isinstance(error, TsugikiError) else 1)


def rank_main(job: TrainJob, rank: int, size: int, port: int, stop: StopRequest) -> int:
    """A rank from its start to its exit status; the stop request is installed."""
    die_with_parent()
    reserve_error(job.work_dir, rank)
    log = log_path(job.work_dir, rank)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    try:
        set_variables(
            deterministic=job.config.deterministic
        )  # before anything that may start CUDA is imported
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

        import_megatron()
        store = TCPStore(
            "127.0.0.1", port, size, is_master=False, timeout=timedelta(minutes=5), wait_for_workers=False
        )
        finished = train(job, World(rank, size, rank), stop, store)
    except PeerFailedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
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
    status = _supervise(job, ranks, stop)
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


def _supervise(job: TrainJob, ranks: list[int], stop: StopRequest) -> int:
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
            harmless = (0, INTERRUPTED_EXIT_CODE)
            if code not in harmless and worst in (*harmless, FOLLOWED_EXIT_CODE):
                if code != FOLLOWED_EXIT_CODE:
                    print(f"rank {ranks.index(pid)} ended with {code}", file=sys.stderr, flush=True)
                if code < 0 and deadline is None:
                    _leave_death(job, ranks.index(pid), -code)
                worst = code
                agreed = code == FOLLOWED_EXIT_CODE
                deadline = deadline or time.monotonic() + (_FOLLOW_SECONDS if agreed else _GRACE_SECONDS)
            elif code == INTERRUPTED_EXIT_CODE and worst == 0:
                worst = code
        if deadline is not None and time.monotonic() > deadline:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return worst if worst >= 0 else 128 - worst


def _leave_death(job: TrainJob, rank: int, number: int) -> None:
    """A killed rank cannot say so itself."""
    kernel = "; SIGKILL without anyone's asking is the kernel's, for lack of memory: see `dmesg`"
    write_error(
        job.work_dir,
        rank,
        TrainingError(
            "a training process died",
            where=f"rank {rank}, {log_path(job.work_dir, rank)}",
            got=f"{signal.Signals(number).name}{kernel if number == signal.SIGKILL else ''}",
            fix="run the same command again to continue from the last checkpoint",
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
