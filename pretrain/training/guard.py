"""What keeps a run from ruining itself: bad losses, hangs, the end of the job's time."""

from __future__ import annotations

import faulthandler
import math
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from tsugiki.pretrain.config import AnomalyConfig, TrainConfig

DEADLINE_VARIABLES = ("TSUGIKI_DEADLINE", "SLURM_JOB_END_TIME")
"""Environment variables that hold the end of the job, in seconds since 1970."""
_SAVE_MARGIN = 2.0
_SAVE_SECONDS = 30.0
_RECENT_STEPS = 32
_COLLECTIVE_MARGIN_SECONDS = 300.0
_UNWATCHED_SECONDS = 1800.0
_BACKSTOP_SECONDS = 60.0


class LossGuard:
    """Tells an ordinary loss from an anomaly.

    Args:
        config: the anomalies section.
    """

    def __init__(self, config: AnomalyConfig) -> None:
        self._config = config
        self.recent: deque[float] = deque(maxlen=config.window_steps)
        """Losses of the last ordinary steps, oldest first; part of a checkpoint."""

    def judge(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with a step, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        factor = self._config.spike_factor
        if factor is not None and len(self.recent) >= self._config.window_steps // 2:
            median = statistics.median(self.recent)
            if loss > factor * median:
                return f"the loss jumped to {loss:.4f} from a median of {median:.4f}"
        return None

    def accept(self, loss: float) -> None:
        """Remember an ordinary loss."""
        self.recent.append(loss)


class Watchdog:
    """Notices when the loop has not moved for too long.

    Args:
        seconds: longest time between two signs of life; None = no watching.
        patient_seconds: the same where work takes longer: before the first step is done, while a checkpoint is
            written.
        on_hang: called with the seconds that passed; it ends the process.
    """

    def __init__(
        self, seconds: float | None, patient_seconds: float, on_hang: Callable[[float], None]
    ) -> None:
        self._seconds, self._patient_seconds = seconds, max(patient_seconds, seconds or 0.0)
        self._on_hang = on_hang
        self.signs = 0
        """Signs of life given; where a rank stands among the others, which give the same ones."""
        self._stop = threading.Event()
        self.alive(patient=True)
        if seconds is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def alive(self, *, patient: bool = False) -> None:
        """A sign of life.

        Args:
            patient: what comes now may take longer.
        """
        if self._seconds is None:
            return
        self.signs += 1
        limit = self._patient_seconds if patient else self._seconds
        self._limit, self._alive = limit, time.monotonic()
        # Where the interpreter's lock is never given back, no thread of Python can tell; this one needs no lock.
        faulthandler.dump_traceback_later(limit + _BACKSTOP_SECONDS, exit=True)

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._stop.wait(min(self._seconds / 4, 5.0)):
            if (waited := time.monotonic() - self._alive) > self._limit:
                self._on_hang(waited)
                return


def collective_timeout(config: TrainConfig) -> timedelta:
    """How long ranks wait for each other: longer than the watchdog, which tells more than a timeout."""
    watched = config.watchdog_seconds
    longest = _UNWATCHED_SECONDS if watched is None else max(watched, config.startup_watchdog_seconds)
    return timedelta(seconds=longest + _COLLECTIVE_MARGIN_SECONDS)


class Deadline:
    """The end of the job's time: whether a checkpoint must be written now to be written at all."""

    def __init__(self) -> None:
        self._end: float | None = None
        self.problem = ""
        """What is wrong with the variable that should hold it."""
        for name in DEADLINE_VARIABLES:
            text = os.environ.get(name, "")
            if text.isdigit():
                self._end = float(text)
                break
            if text:
                self.problem = f"{name}={text!r} is not a number of seconds since 1970: ignored"
        self._step_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._save_seconds = _SAVE_SECONDS
        self._done = False

    def step_took(self, seconds: float) -> None:
        """The longest recent step decides how early to save; the first one, which compiles, is forgotten."""
        self._step_seconds.append(seconds)

    def save_took(self, seconds: float) -> None:
        """The longest checkpoint so far decides how early to save."""
        self._save_seconds = max(self._save_seconds, seconds)

    def save_now(self) -> bool:
        """True once, when another step and its checkpoint would no longer fit."""
        if self._end is None or self._done:
            return False
        left = self._end - time.time()
        self._done = left < _SAVE_MARGIN * (self._save_seconds + max(self._step_seconds, default=0.0))
        return self._done
