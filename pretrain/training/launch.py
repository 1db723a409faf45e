"""Starts the processes of a training run on this machine, or takes part as one that Slurm started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tsugiki.experiment.errors import ConfigError, Interrupted, TrainingError, TsugikiError
from tsugiki.experiment.tracking import BackgroundTracker, NullTracker, Tracker
from tsugiki.pretrain.runtime.job import (
    INTERRUPTED_EXIT_CODE,
    TrainJob,
    log_path,
    read_error,
)
from tsugiki.pretrain.runtime.signals import StopRequest, held_back
from tsugiki.pretrain.training.metrics import point_of

_POLL_SECONDS = 0.1
_LOG_LINES = 15


def run_here(job: TrainJob, processes: int, tracker: Tracker, stop: StopRequest) -> None:
    """Train with that many processes on this machine and wait for them.

    While waiting, what the run adds to metrics.jsonl is sent on to the tracker, so that no training
    process spends memory or time on MLflow.

    Raises:
        TsugikiError: what the first failing rank raised.
        Interrupted: the run was asked to stop and has saved a checkpoint.
    """
    spec = write_job(job)
    with held_back():
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tsugiki.pretrain.training.worker", str(spec), str(processes)]
        )
    follower = _MetricsFollower(job.metrics_path, tracker)
    told = False
    try:
        while process.poll() is None:
            if stop.requested and not told:
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(_POLL_SECONDS)
            follower.follow()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        follower.close()
    raise_for_status(job, processes, process.returncode)


def write_job(job: TrainJob) -> Path:
    """What `tsugiki.pretrain.training.worker` reads, with nothing left of an earlier attempt's errors and logs."""
    work = job.work_dir
    for folder in ("errors", "logs"):
        shutil.rmtree(work / folder, ignore_errors=True)
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


def check_world(model_processes: int, data: int | None, size: int) -> None:
    """Compare the layout with the processes that Slurm or torchrun started.

    Raises:
        ConfigError: they do not fit.
    """
    expected = model_processes * data if data is not None else None
    if (expected is not None and size != expected) or size % model_processes:
        raise ConfigError(
            "the parallel layout does not fit the processes that were started",
            where="train.parallel",
            got=f"{size} processes",
            expected=f"{expected} = tensor x pipeline x context x data"
            if expected is not None
            else f"a multiple of tensor x pipeline x context = {model_processes}",
            fix="set train.parallel.data to null to use all of them, or start as many as the layout needs",
        )


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


class _MetricsFollower:
    """Sends the lines that appear in metrics.jsonl to a tracker.

    A run that continues replaces the file by one without the lines after its checkpoint; it is read from
    its beginning then. The tracker knows which points it has.
    """

    _INTERVAL_SECONDS = 2.0

    def __init__(self, path: Path, tracker: Tracker) -> None:
        self._path = path
        self._sender = None if isinstance(tracker, NullTracker) else BackgroundTracker(tracker)
        self._file = -1
        self._position = 0
        self._last = time.monotonic()

    def follow(self) -> None:
        """Send what is new, every two seconds."""
        if self._sender is not None and time.monotonic() - self._last >= self._INTERVAL_SECONDS:
            self._read(self._sender)

    def close(self) -> None:
        """Send the rest."""
        if self._sender is not None:
            self._read(self._sender)
            self._sender.close()

    def _read(self, sender: BackgroundTracker) -> None:
        self._last = time.monotonic()
        try:
            with self._path.open("rb") as stream:
                file = os.fstat(stream.fileno()).st_ino
                if file != self._file:
                    self._file, self._position = file, 0
                stream.seek(self._position)
                text = stream.read()
        except FileNotFoundError:
            return
        whole = text.rfind(b"\n") + 1
        self._position += whole
        for line in text[:whole].splitlines():
            sender.put(point_of(json.loads(line)))
