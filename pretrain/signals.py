"""Being asked to stop: signals set a flag, the loop acts on it between steps."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether a signal has asked the run to save and stop.

    Slurm sends SIGTERM (twice) at the time limit and SIGUSR1 or SIGUSR2 before it where the job asked
    for it; an interrupt from the terminal is SIGINT.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_number: int | None = None

    def install(self) -> None:
        """Handle the signals in this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self.signal_number = number
