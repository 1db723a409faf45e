"""Progress of long work: a bar with rate and ETA on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_PLAIN_INTERVAL_SECONDS = 10.0


class Progress:
    """Counts units of work and shows rate and time left.

    Use as a context manager; ``advance`` may be called as often as convenient.

    Args:
        label: what is being done, e.g. ``"encode ja"``.
        total: units in all, or None when unknown.
        unit: name of the unit, e.g. ``"docs"``, ``"MB"``.
        stream: where to write; the default is standard error.
    """

    def __init__(
        self, label: str, total: float | None = None, unit: str = "", stream: TextIO | None = None
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0.0
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = 0.2 if self._terminal else _PLAIN_INTERVAL_SECONDS
        self._start = time.monotonic()
        self._last = self._start
        self._note = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._write(final=True)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Add finished units; ``note`` is shown behind the numbers (e.g. the current loss)."""
        self.done += amount
        if note:
            self._note = note
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._write(final=False)

    def expect(self, seconds: float, what: str) -> None:
        """Say at the start what there is to do and how long it will take by a first measurement."""
        text = f"{self.label}: {what}, about {_clock(seconds)} in all"
        self._stream.write(("\r\x1b[K" if self._terminal else "") + text + "\n")
        self._stream.flush()

    def line(self) -> str:
        """The current state as one line of text."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / elapsed
        digits = 1 if self.total is not None and self.total < 10 and self.total % 1 else 0
        amount = f"{self.done:,.{digits}f}" + ("" if self.total is None else f"/{self.total:,.{digits}f}")
        text = f"{self.label}: {amount} {self.unit}".rstrip() + f"  {rate:,.1f}/s"
        if self.total and 0 < self.done < self.total:
            text += f"  {_clock((self.total - self.done) / rate)} left"
        else:
            text += f"  {_clock(elapsed)}"
        return f"{text}  {self._note}" if self._note else text

    def _write(self, *, final: bool) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K" + self.line() + ("\n" if final else ""))
        else:
            self._stream.write(self.line() + "\n")
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
