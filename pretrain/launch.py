"""Starts the processes of a training run on this machine, or takes part as one that Slurm started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from experiment.errors import ConfigError, Interrupted, TrainingError, TsugikiError
from experiment.tracking import NullTracker, Tracker
from pretrain.job import (
    INTERRUPTED_EXIT_CODE,
    TrainJob,
    log_path,
    read_error,
)
from pretrain.metrics import numbers_of
from pretrain.signals import STOP_SIGNALS

_POLL_SECONDS = 0.1
_LOG_LINES = 15


def run_here(job: TrainJob, processes: int, tracker: Tracker) -> None:
    """Train with that many processes on this machine and wait for them.

    While waiting, what the run adds to metrics.jsonl is sent on to the tracker, so that no training
    process spends memory or time on MLflow.

    Raises:
        TsugikiError: what the first failing rank raised.
        Interrupted: the run was asked to stop and has saved a checkpoint.
    """
    work = job.work_dir
    for folder in ("errors", "logs"):
        shutil.rmtree(work / folder, ignore_errors=True)
        (work / folder).mkdir(parents=True)
    spec = work / "job.json"
    spec.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *_inherited_path()])}
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain.worker", str(spec), str(processes)], env=environment
    )
    follower = _MetricsFollower(job.metrics_path, tracker)
    previous = _pass_signals_to(process)
    try:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            follower.follow()
        follower.follow(everything=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode == INTERRUPTED_EXIT_CODE:
        raise Interrupted(
            "training was asked to stop",
            where=job.checkpoints_dir,
            fix="run the same command again to continue",
        )
    if process.returncode != 0:
        raise _first_error(job, processes, process.returncode)


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


def _inherited_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def _pass_signals_to(process: subprocess.Popen[bytes]) -> dict[int, Any]:
    """Hand SIGTERM and its like to the ranks; returns the handlers to put back."""
    if threading.current_thread() is not threading.main_thread():
        return {}

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if process.poll() is None:
            process.send_signal(number)

    return {int(number): signal.signal(number, pass_on) for number in STOP_SIGNALS}


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
    """Sends the lines that appear in metrics.jsonl to a tracker, several in one call where they pile up."""

    _INTERVAL_SECONDS = 2.0

    def __init__(self, path: Path, tracker: Tracker) -> None:
        self._path = path
        self._tracker = tracker
        self._known = self._lines()[-1] if self._lines() else None
        self._sent = len(self._lines())
        self._last = time.monotonic()
        self._steps_sent = _last_step(self._known)

    def _lines(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()

    def follow(self, *, everything: bool = False) -> None:
        """Send what is new."""
        if isinstance(self._tracker, NullTracker):
            return
        now = time.monotonic()
        if not everything and now - self._last < self._INTERVAL_SECONDS:
            return
        self._last = now
        lines = self._lines()
        # A run that continues first drops the lines after its checkpoint.
        self._sent = min(self._sent, len(lines))
        for text in lines[self._sent :]:
            line = json.loads(text)
            self._tracker.log_metrics(numbers_of(line), int(line["step"]))
        self._sent = len(lines)


def _last_step(line: str | None) -> int:
    return int(json.loads(line)["step"]) if line else 0
