"""Being asked to stop: signals set a flag, the loop acts on it between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from tsugiki.experiment.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether a signal has asked the run to save and stop.

    Slurm sends SIGTERM (twice) at the time limit and SIGUSR1 or SIGUSR2 before it where the job asked
    for it; an interrupt from the terminal is SIGINT.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the signals in this process, those held back by :func:`held_back` included."""
        if threading.current_thread() is threading.main_thread():  # no other may
            self._previous = {int(number): signal.signal(number, self._handle) for number in STOP_SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def __enter__(self) -> Self:
        """Handle the signals."""
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Put back the handlers that were there before; not after a stop: the end is not to be disturbed by
        the second signal that Slurm sends."""
        if kind is not None and issubclass(kind, Interrupted):
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Stop signals wait until the end of this; in a process started meanwhile, until it has its handlers.

    Without it a signal in the seconds that Python needs to import would end the new process.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
