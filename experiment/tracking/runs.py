"""The run of a stage in all trackers at once.

Before work starts a tracker that is not installed is refused. One that fails, be it when its run is opened, is
said once and never ends the work: the run directory has everything. One that keeps a call waiting (a server that
accepts and stays silent) is not called for a minute, so that it delays a run by seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import ConfigError, EnvironmentError_, TsugikiError
from tsugiki.experiment.files import write_json_atomically
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.tracker import Point, RunRequest, RunStatus, Tracker, tracker_class

_SLOW_FAILURE_SECONDS = 2.0
_PAUSE_SECONDS = 60.0


class Pauses:
    """Which trackers are left alone for a while because they kept a call waiting, and then failed.

    A failure that comes at once costs nothing, so the next call is tried as usual.
    """

    def __init__(self) -> None:
        self._until: dict[tuple[str, str | None], float] = {}

    def check(self, name: str, uri: str | None) -> None:
        """Raise instead of a call that would wait.

        Raises:
            TrackingFailed: the tracker is left alone at present.
        """
        if time.monotonic() < self._until.get((name, uri), 0.0):
            raise TrackingFailed("it kept the last call waiting and is left alone for a minute")

    @contextlib.contextmanager
    def watch(self, name: str, uri: str | None) -> Iterator[None]:
        """Around a call; refused where :meth:`check` refuses."""
        self.check(name, uri)
        started = time.monotonic()
        try:
            yield
        except Exception:
            if time.monotonic() - started > _SLOW_FAILURE_SECONDS:
                self._until[name, uri] = time.monotonic() + _PAUSE_SECONDS
            raise


_pauses = Pauses()
"""Of this process: the runs of all stages share a server."""


class Trackers:
    """A run in every tracker; none by default. Only :meth:`log_points` raises what a tracker raises.

    Args:
        members: the run in each tracker, by the tracker's name.
        failing: names of those that fail already, which was said.
        uri: ``tracking.uri``.
    """

    def __init__(
        self,
        members: Mapping[str, Tracker] | None = None,
        failing: Sequence[str] = (),
        uri: str | None = None,
    ) -> None:
        self.members = dict(members or {})
        self._failing = set(failing)
        self._uri = uri

    def __bool__(self) -> bool:
        """Whether there is anything to log to."""
        return bool(self.members)

    @property
    def run_ids(self) -> dict[str, str]:
        """Id of the run, by tracker."""
        return {name: tracker.run_id for name, tracker in self.members.items()}

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys the run already has are left alone."""
        self._each(lambda tracker: tracker.log_params(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step."""
        self._each(lambda tracker: tracker.log_metrics(metrics, step))

    def log_points(self, points: Sequence[Point]) -> None:
        """Log lines of curves; those that a run has are left out.

        Raises:
            TrackingFailed: a tracker failed, after all were tried. Send the same again: the others have it.
        """
        failures = []
        for name, tracker in self.members.items():
            try:
                with _pauses.watch(name, self._uri):
                    tracker.log_points(points)
            except Exception as error:  # whatever the library raises
                failures.append((name, error))
        if failures:
            failed, cause = failures[0]
            raise TrackingFailed(f"{failed}: {first_line(cause)}") from cause

    def log_final(self, metrics: Mapping[str, float]) -> None:
        """Log the results of a stage; metrics that have a curve already keep it as it is."""
        self._each(lambda tracker: tracker.log_final(metrics))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        self._each(lambda tracker: tracker.log_artifact(path, folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, overwriting."""
        self._each(lambda tracker: tracker.set_tags(tags))

    def terminate(self, status: RunStatus) -> None:
        """Mark the run as ended."""
        self._each(lambda tracker: tracker.terminate(status))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in self.members.items():
            try:
                with _pauses.watch(name, self._uri):
                    action(tracker)
            except Exception as error:  # whatever the library raises
                if name not in self._failing:
                    _say(f"{name}: {first_line(error)}")
                self._failing.add(name)
            else:
                self._failing.discard(name)


class TrackingFailed(Exception):
    """A tracker did not take lines of a curve."""


def not_installed(config: TrackingConfig) -> dict[str, str]:
    """How to install what trackers lack, by tracker.

    Raises:
        ConfigError: a tracker of the user's own cannot be imported.
    """
    lacking = {}
    for name in config.active:
        kind = tracker_class(name)
        if kind.library is not None and not _is_installed(kind.library):
            lacking[name] = f"pip install '{f'tsugiki[{kind.extra}]' if kind.extra else kind.library}'"
    return lacking


def check_installed(config: TrackingConfig) -> None:
    """Refuse trackers whose library is missing, before work starts.

    Raises:
        EnvironmentError_: with what to install.
    """
    for name, how in not_installed(config).items():
        raise EnvironmentError_(
            f"the tracker '{name}' is not installed",
            where="tracking.trackers",
            fix=f"{how}, or leave {name} out",
        )


def _is_installed(library: str) -> bool:
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None  # a folder `wandb` of runs is no library


def open_run(
    config: TrackingConfig,
    run_dir: Path,
    name: str,
    *,
    run_ids: Mapping[str, str] | None = None,
    parent_run_ids: Mapping[str, str] | None = None,
) -> Trackers:
    """Open a run in every tracker, or the runs of those ids again.

    Args:
        config: the tracking section.
        run_dir: the experiment's run directory.
        name: shown name of the run.
        run_ids: run to continue, by tracker.
        parent_run_ids: parent run of a stage, by tracker.

    A tracker that fails is said and left out; where there is a run to continue it may come back later.

    Raises:
        EnvironmentError_: a tracker is not installed.
        ConfigError: its options are wrong.
    """
    check_installed(config)
    members: dict[str, Tracker] = {}
    failing = []
    for tracker in config.active:
        kind = tracker_class(tracker)
        request = RunRequest(
            run_dir=run_dir,
            name=name,
            experiment=config.experiment,
            uri=config.uri,
            options=kind.Options.model_validate(config.options.get(tracker, {})),
            run_id=(run_ids or {}).get(tracker),
            parent_run_id=(parent_run_ids or {}).get(tracker),
        )
        try:
            with _pauses.watch(tracker, config.uri):
                members[tracker] = kind.open(request)
        except ConfigError:
            raise
        except Exception as error:  # each library has its own
            _say(f"{tracker}: {first_line(error)}")
            failing.append(tracker)
            if request.run_id is not None and (later := kind.unreachable(request)) is not None:
                members[tracker] = later
    return Trackers(members, failing, config.uri)


class RunIds:
    """The ids of an experiment's runs, in one small file a tracker: ``mlflow.json``, ``wandb.json``, …

    Args:
        run_dir: the experiment's run directory.
        config: the tracking section.
    """

    def __init__(self, run_dir: Path, config: TrackingConfig) -> None:
        self._files = {
            name: run_dir / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.json" for name in config.active
        }

    def of(self, stage: str) -> dict[str, str]:
        """Ids of a stage's run (``experiment`` = the parent), by tracker."""
        return {name: found[stage] for name in self._files if stage in (found := self._read(name))}

    def remember(self, stage: str, run_ids: Mapping[str, str]) -> None:
        """Keep the ids of a stage's run."""
        for name, run_id in run_ids.items():
            write_json_atomically(self._files[name], {**self._read(name), stage: run_id})

    def _read(self, name: str) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self._files[name].read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found


def job_tags() -> dict[str, str]:
    """Tags that say which Slurm job works on a run; empty outside Slurm. A requeued job overwrites them."""
    names = {
        "slurm.job_id": "SLURM_JOB_ID", "slurm.restarts": "SLURM_RESTART_COUNT",
        "slurm.nodes": "SLURM_JOB_NODELIST", "slurm.cluster": "SLURM_CLUSTER_NAME",
    }  # fmt: skip
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    return {tag: os.environ.get(name, "0") for tag, name in names.items()}


def first_line(error: Exception) -> str:
    """An error in one line, with its type unless it is ours."""
    if isinstance(error, TsugikiError):
        return error.what if error.got is None else f"{error.what}: {error.got}"
    text = str(error).strip().split(chr(10))[0]
    return text if isinstance(error, TrackingFailed) else f"{type(error).__name__}: {text}"


def _say(text: str) -> None:
    print(f"tracking fails, the work goes on: {text}", file=sys.stderr, flush=True)
