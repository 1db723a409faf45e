"""The one way of training's metrics to the trackers: metrics.jsonl is followed while it grows.

The process that opened the runs follows, a launcher or rank 0 of a job; the rank that writes the file may be
another one, on another node. No training step waits for a tracker.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tsugiki.experiment.tracking.runs import Trackers, first_line
from tsugiki.experiment.tracking.tracker import Point
from tsugiki.pretrain.training.metrics.window import point_of

_INTERVAL_SECONDS = 2.0
_CLOSE_SECONDS = 60.0
_CLOSE_FAILING_SECONDS = 5.0


class MetricsFollower:
    """Sends the lines that appear in metrics.jsonl to the trackers, from a thread, several in one call.

    A run that continues replaces the file by one without the lines after its checkpoint; it is read from its
    beginning then, and a tracker leaves out what it has. A tracker that fails does not end the training: that
    is said once, and what was not sent is tried again with the next lines.

    Args:
        path: metrics.jsonl.
        tracker: where to; nothing is read where there is no tracker.
        say: shows a line to the user.
    """

    def __init__(self, path: Path, tracker: Trackers, say: Callable[[str], None] | None = None) -> None:
        self._path, self._tracker = path, tracker
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._file, self._position = -1, 0
        self._waiting: list[Point] = []
        self._failing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def __enter__(self) -> Self:
        """Begin to follow."""
        if self._tracker:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send the rest; gives up after a minute, after seconds where the last lines could not be sent either."""
        self._ended.set()
        if self._tracker:
            self._thread.join(_CLOSE_FAILING_SECONDS if self._failing else _CLOSE_SECONDS)

    def _work(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(_INTERVAL_SECONDS)
            self._waiting += self._read()
            if not self._waiting:
                continue
            try:
                self._tracker.log_points(self._waiting)
            except Exception as error:  # whatever a tracker raises; training goes on
                if not self._failing:
                    self._say(f"tracking fails, training goes on: {first_line(error)}")
                self._failing = True
            else:
                self._waiting = []
                self._failing = False

    def _read(self) -> list[Point]:
        """The lines that were finished since the last time."""
        try:
            with self._path.open("rb") as stream:
                file = os.fstat(stream.fileno()).st_ino
                if file != self._file:
                    self._file, self._position = file, 0
                stream.seek(self._position)
                text = stream.read()
        except FileNotFoundError:
            return []
        complete = text.rfind(b"\n") + 1
        self._position += complete
        return [point_of(json.loads(line)) for line in text[:complete].splitlines()]
