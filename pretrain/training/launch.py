"""Starts the processes of a training run on this machine, or takes part as one that Slurm started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tsugiki.experiment.errors import Interrupted, TrainingError, TsugikiError
from tsugiki.experiment.run.folders import remove_entry
from tsugiki.pretrain.runtime.job import (
    INTERRUPTED_EXIT_CODE,
    TrainJob,
    log_path,
    read_error,
)
from tsugiki.pretrain.runtime.signals import StopRequest, held_back

_POLL_SECONDS = 0.1
_LOG_LINES = 15


def run_here(job: TrainJob, processes: int, stop: StopRequest) -> None:
    """Train with that many processes on this machine and wait for them.

    Raises:
        TsugikiError: what the first failing rank raised.
        Interrupted: the run was asked to stop and has saved a checkpoint.
    """
    spec = write_job(job)
    with held_back():
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tsugiki.pretrain.training.worker", str(spec), str(processes)]
        )
    told = False
    try:
        while process.poll() is None:
            if stop.requested and not told:
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    raise_for_status(job, processes, process.returncode)


def write_job(job: TrainJob) -> Path:
    """What `tsugiki.pretrain.training.worker` reads, with nothing left of an earlier attempt's errors and logs."""
    work = job.work_dir
    for folder in ("errors", "logs"):
        if (work / folder).exists():
            remove_entry(work / folder)
        (work / folder).mkdir(parents=True)
    spec = work / "job.json"
    spec.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    return spec


def raise_for_status(job: TrainJob, processes: int, status: int) -> None:
    """Turn the exit status of the ranks into what they raised.

    Raises:
        TsugikiError: what the first failing rank raised.
        Interrupted: the run was asked to stop and has saved a checkpoint.
    """
    if status == INTERRUPTED_EXIT_CODE:
        raise Interrupted(
            "training was asked to stop",
            where=job.checkpoints_dir,
            fix="run the same command again to continue",
        )
    if status != 0:
        raise _first_error(job, processes, status)


def _first_error(job: TrainJob, processes: int, code: int) -> TsugikiError:
    """The error of the rank that failed first, or the end of its log."""
    errors = [
        (entry.stat().st_mtime, int(entry.stem.removeprefix("rank_")))
        for entry in (job.work_dir / "errors").glob("rank_*.json")
    ]
    for _, rank in sorted(errors):
        if (error := read_error(job.work_dir, rank)) is not None:
            return error
    for rank in range(processes):
        lines = _last_lines(log_path(job.work_dir, rank))
        if lines:
            break
    else:
        lines = "no rank left an error; it was killed from outside, for example for lack of memory"
    return TrainingError(
        "a training process died",
        where=job.work_dir / "logs",
        got=f"exit status {code}\n{lines}",
        fix="run the same command again to continue from the last checkpoint",
    )


def _last_lines(path: Path) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
    except OSError:
        return ""
