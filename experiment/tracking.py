"""Experiment tracking in MLflow: parent run = experiment, child run = stage.

The default store is an embedded SQLite file beside the runs, so nothing has to be started;
``tracking.uri`` names a server instead. Parameters are immutable in MLflow: a resumed run logs
only the keys it does not have yet. Metrics go in one batched call (1,000 at most, MLflow's limit)
per interval: 1,000 points take 4 s batched and 90 s one by one.

A curve may be sent again from its beginning, after a kill for example: a tag of the run holds the last
step of every kind of line, and what the run has already is left out.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Protocol

from tsugiki.experiment.config import StrictModel
from tsugiki.experiment.errors import EnvironmentError_

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
_METRICS_PER_CALL = 1000
_PARAM_LENGTH = 6000
_PARAMS_PER_CALL = 100
_LOGGED_TAG = "tsugiki.logged_steps"
_CLOSE_SECONDS = 60.0


class TrackingConfig(StrictModel):
    """Where runs are tracked."""

    enabled: bool = True
    """False switches tracking off; ``metrics.jsonl`` is written all the same."""
    uri: str | None = None
    """MLflow tracking URI; null is an SQLite file ``mlflow.db`` beside the run directories."""
    experiment: str = "tsugiki"
    """Name of the MLflow experiment."""


class TrackingInfo(StrictModel):
    """What another process needs to go on logging to the same run."""

    uri: str
    run_id: str


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


class Tracker(Protocol):
    """What a stage sees of tracking."""

    @property
    def info(self) -> TrackingInfo | None:
        """Handle for :func:`attach` in another process; None when tracking is off."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys the run already has are left alone."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step in one call."""

    def log_points(self, points: Sequence[Point]) -> None:
        """Log lines of a curve, all in one call; those that the run has are left out."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, overwriting."""


class NullTracker:
    """Logs nothing: tracking switched off, or a process that only hands ``info`` on."""

    def __init__(self, info: TrackingInfo | None = None) -> None:
        self.info = info

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Nothing."""

    def log_points(self, points: Sequence[Point]) -> None:
        """Nothing."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""


P = ParamSpec("P")


def _forgiving(
    method: Callable[Concatenate[MlflowTracker, P], None],
) -> Callable[Concatenate[MlflowTracker, P], None]:
    """A store that fails is said once and does not end the work: the run directory has everything."""

    @functools.wraps(method)
    def call(self: MlflowTracker, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # whatever the store's client raises
            if not self.failing:
                print(f"tracking fails, the work goes on: {_first_line(error)}", file=sys.stderr, flush=True)
            self.failing = True
        else:
            self.failing = False

    return call


class MlflowTracker:
    """Tracking in one MLflow run. Only :meth:`log_points` and :meth:`reopen` raise what the store raises."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.info: TrackingInfo | None = TrackingInfo(uri=uri, run_id=run_id)
        self._uri, self._run_id = uri, run_id
        self._logged: dict[str, int] | None = None
        self.failing = False

    @functools.cached_property
    def _client(self) -> Any:
        """Connects at the first use: that may fail, too."""
        return _connect(self._uri)

    @_forgiving
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys the run already has are left alone."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        fresh = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in params.items() if key not in known]
        for start in range(0, len(fresh), _PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=fresh[start : start + _PARAMS_PER_CALL])

    @_forgiving
    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        for start in range(0, len(entries), _METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=entries[start : start + _METRICS_PER_CALL])

    def log_points(self, points: Sequence[Point]) -> None:
        """Log lines of a curve, all in one call; those that the run has are left out."""
        from mlflow.entities import Metric, RunTag

        if self._logged is None:
            tag = self._client.get_run(self._run_id).data.tags.get(_LOGGED_TAG, "{}")
            self._logged = json.loads(tag)
        logged = dict(self._logged)
        entries = []
        for point in points:
            if point.metrics and point.step > logged.get(point.kind, -1):
                logged[point.kind] = point.step
                entries += [
                    Metric(key, float(value), point.milliseconds, point.step)
                    for key, value in point.metrics.items()
                ]
        for start in range(0, len(entries), _METRICS_PER_CALL):
            # The tag comes with the last part: after a failure all of it is sent again.
            last = start + _METRICS_PER_CALL >= len(entries)
            tags = [RunTag(_LOGGED_TAG, json.dumps(logged))] if last else []
            self._client.log_batch(
                self._run_id, metrics=entries[start : start + _METRICS_PER_CALL], tags=tags
            )
        self._logged = logged

    @_forgiving
    def log_final(self, metrics: Mapping[str, float]) -> None:
        """Log the results of a stage; metrics that have a curve already keep it as it is."""
        known = self._client.get_run(self._run_id).data.metrics
        self.log_metrics({key: value for key, value in metrics.items() if key not in known})

    @_forgiving
    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file."""
        self._client.log_artifact(self._run_id, str(path), folder or None)

    @_forgiving
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, overwriting."""
        for key, value in tags.items():
            self._client.set_tag(self._run_id, key, value)

    @_forgiving
    def terminate(self, status: RunStatus) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run_id, status)

    def reopen(self) -> None:
        """Mark an ended run as running again (resume, requeue)."""
        self._client.update_run(self._run_id, status="RUNNING")


class BackgroundTracker:
    """Sends lines of curves from a thread, several in one call where they pile up.

    The training that reports does not wait for the store, and a store that fails does not end it: that
    is said once, and what was not sent is tried again with the next lines. metrics.jsonl has everything.

    Args:
        tracker: where to.
        say: shows a line to the user.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None] | None = None) -> None:
        self._tracker = tracker
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._queue: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, point: Point) -> None:
        """Send this soon."""
        self._queue.put(point)

    def close(self) -> None:
        """Send the rest; gives up after a minute."""
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _work(self) -> None:
        waiting: list[Point] = []
        ended = False
        while not ended:
            fresh = [self._queue.get()]
            while not self._queue.empty():
                fresh.append(self._queue.get())
            ended = None in fresh
            waiting += [point for point in fresh if point is not None]
            try:
                self._tracker.log_points(waiting)
            except Exception as error:  # whatever the store's client raises; training goes on
                if not self._failing:
                    self._say(f"tracking fails, training goes on: {_first_line(error)}")
                self._failing = True
            else:
                waiting = []
                self._failing = False


def job_tags() -> dict[str, str]:
    """Tags that say which Slurm job works on a run; empty outside Slurm. A requeued job overwrites them."""
    names = {
        "slurm.job_id": "SLURM_JOB_ID", "slurm.restarts": "SLURM_RESTART_COUNT",
        "slurm.nodes": "SLURM_JOB_NODELIST", "slurm.cluster": "SLURM_CLUSTER_NAME",
    }  # fmt: skip
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    return {tag: os.environ.get(name, "0") for tag, name in names.items()}


def _connect(uri: str) -> Any:
    """MLflow's client, whose seven retries would hold up the end of a job for minutes."""
    for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")):
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"


def attach(info: TrackingInfo | None) -> Tracker:
    """The tracker of a run that another process opened."""
    return NullTracker() if info is None else MlflowTracker(info.uri, info.run_id)


def default_uri(run_dir: Path) -> str:
    """URI of the embedded store: ``mlflow.db`` in the folder that holds the run directories."""
    return f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"


def open_run(
    config: TrackingConfig,
    run_dir: Path,
    name: str,
    *,
    run_id: str | None = None,
    parent_run_id: str | None = None,
) -> MlflowTracker | None:
    """Open a run, or the run of that id again; None when tracking is off.

    Args:
        config: the tracking section.
        run_dir: the experiment's run directory.
        name: shown name of the run.
        run_id: run to continue; a run that the store does not have any more is replaced by a new one.
            Where the store fails, that is said and the work goes on.
        parent_run_id: parent run of a stage.

    Raises:
        EnvironmentError_: the store cannot be reached, and there is no run to continue.
    """
    if not config.enabled:
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri = config.uri or default_uri(run_dir)
    try:
        client = _connect(uri)
        if run_id is not None:
            try:
                client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                run_id = None
        if run_id is None:
            experiment_id = _experiment_id(client, config, run_dir)
            tags = {} if parent_run_id is None else {MLFLOW_PARENT_RUN_ID: parent_run_id}
            run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        tracker = MlflowTracker(uri, run_id)
        tracker.reopen()
    except Exception as error:  # of SQLAlchemy, requests, MLflow: each store has its own
        if run_id is not None:
            tracker = MlflowTracker(uri, run_id)
            tracker.failing = True
            print(
                f"tracking fails, the work goes on: {uri}: {_first_line(error)}", file=sys.stderr, flush=True
            )
            return tracker
        raise EnvironmentError_(
            "cannot reach the MLflow store",
            where="tracking.uri",
            got=f"{uri}: {_first_line(error)}",
            fix="start the server, correct the URI, or set tracking.enabled=false",
        ) from error
    return tracker


def _experiment_id(client: Any, config: TrackingConfig, run_dir: Path) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(config.experiment)) is not None:
        return str(found.experiment_id)
    location = None
    if config.uri is None or not config.uri.startswith(("http:", "https:", "databricks")):
        # A store without a server puts artefacts into the current directory unless told otherwise.
        location = (run_dir.resolve().parent / "mlartifacts" / config.experiment).as_uri()
    try:
        return str(client.create_experiment(config.experiment, artifact_location=location))
    except MlflowException:
        # Another process created it between the two calls.
        found = client.get_experiment_by_name(config.experiment)
        if found is None:
            raise
        return str(found.experiment_id)
