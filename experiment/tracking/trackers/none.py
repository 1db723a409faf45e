"""No tracking: ``trackers: [none]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from tsugiki.experiment.tracking.tracker import TRACKERS, Point, RunRequest, Tracker


@TRACKERS.register("none")
class NoTracker(Tracker):
    """Logs nothing. :attr:`TrackingConfig.active` leaves it out; it is here for its name."""

    run_id = ""

    @classmethod
    def open(cls, request: RunRequest) -> Self:
        """Nothing to open."""
        return cls()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def send(self, points: Sequence[Point], logged: Mapping[str, int]) -> None:
        """Nothing."""
