"""What a tracker has to do, and the registry of those there are.

Names of parameters, metrics and tags are the same in every tracker. A tracker may raise whatever its library
raises: :class:`~tsugiki.experiment.tracking.runs.Trackers` catches it, says it once, and the work goes on.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from tsugiki.experiment.config.registry import Registry
from tsugiki.experiment.config.strict import StrictModel

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class NoOptions(StrictModel):
    """Of a tracker that has none."""


@dataclass(frozen=True)
class RunRequest:
    """A run to open.

    Attributes:
        run_dir: the experiment's run directory; what a tracker keeps in files goes beside it.
        name: shown name of the run: the experiment's, or the stage's.
        experiment: ``tracking.experiment``, under which the tracker groups runs.
        uri: ``tracking.uri``.
        options: ``tracking.options.<tracker>``.
        run_id: run to continue; None opens a new one.
        parent_run_id: the experiment's run, for the run of a stage.
    """

    run_dir: Path
    name: str
    experiment: str
    uri: str | None
    options: Any
    run_id: str | None = None
    parent_run_id: str | None = None


@dataclass(frozen=True)
class Point:
    """One line of a curve.

    Attributes:
        step: where on the curve.
        milliseconds: time since 1970.
        metrics: values by name; what stands before the first "/" of the first name is the kind of line,
            and the steps of a kind grow.
    """

    step: int
    milliseconds: int
    metrics: Mapping[str, float]

    @property
    def kind(self) -> str:
        """The kind of line."""
        return next(iter(self.metrics)).split("/")[0]


class Tracker(ABC):
    """One run in one tracker."""

    Options: ClassVar[type[StrictModel]] = NoOptions
    """Model of ``tracking.options.<tracker>``."""
    library: ClassVar[str | None] = None
    """Module that must be installed."""
    extra: ClassVar[str | None] = None
    """The extra of Tsugiki that installs it."""

    _logged: dict[str, int] | None = None

    @classmethod
    @abstractmethod
    def open(cls, request: RunRequest) -> Self:
        """Open a run, or the one of ``request.run_id`` again; replace one that is not there any more."""

    @classmethod
    def unreachable(cls, request: RunRequest) -> Self | None:
        """What stands for a run that goes on while :meth:`open` fails; None leaves the tracker out until then."""
        return None

    @property
    @abstractmethod
    def run_id(self) -> str:
        """Under which another process finds the run again."""

    @abstractmethod
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys the run already has are left alone."""

    @abstractmethod
    def send(self, points: Sequence[Point], logged: Mapping[str, int]) -> None:
        """Write lines of curves.

        Args:
            points: the lines.
            logged: what :meth:`read_logged` has to answer once they are written.
        """

    def read_logged(self) -> Mapping[str, int]:
        """The last step that the run has of every kind of line, so that no line is there twice."""
        return {}

    def metric_names(self) -> Collection[str]:
        """Metrics that the run has."""
        return ()

    # What a tracker may lack: files, tags, an end.
    def log_artifact(self, path: Path, folder: str = "") -> None:  # noqa: B027
        """Keep a file with the run."""

    def set_tags(self, tags: Mapping[str, str]) -> None:  # noqa: B027
        """Set tags, overwriting."""

    def terminate(self, status: RunStatus) -> None:  # noqa: B027
        """Mark the run as ended and write out what is left."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step, now."""
        self.send([Point(step, int(time.time() * 1000), metrics)], self._known())

    def log_points(self, points: Sequence[Point]) -> None:
        """Log lines of curves, those left out that the run has: a curve is sent again after a kill."""
        logged = dict(self._known())
        fresh = []
        for point in points:
            if point.metrics and point.step > logged.get(point.kind, -1):
                logged[point.kind] = point.step
                fresh.append(point)
        if fresh:
            self.send(fresh, logged)
            self._logged = logged

    def log_final(self, metrics: Mapping[str, float]) -> None:
        """Log the results of a stage; metrics that have a curve already keep it as it is."""
        known = self.metric_names()
        if fresh := {key: value for key, value in metrics.items() if key not in known}:
            self.log_metrics(fresh)

    def _known(self) -> Mapping[str, int]:
        if self._logged is None:
            self._logged = dict(self.read_logged())
        return self._logged


TRACKERS: Registry[type[Tracker]] = Registry("tracker", ["tsugiki.experiment.tracking.trackers"])


def tracker_class(name: str, where: object = "tracking.trackers") -> type[Tracker]:
    """The class of a name of ``tracking.trackers``, or of a user's own ``package.module:Class``.

    Raises:
        ConfigError: unknown, or not a tracker.
    """
    if ":" not in name:
        return TRACKERS.get(name, where)
    found: type[Tracker] = TRACKERS.load_object(name, where)
    return found
