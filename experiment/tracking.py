"""Experiment tracking in MLflow: parent run = experiment, child run = stage.

The default store is an embedded SQLite file beside the runs, so nothing has to be started;
``tracking.uri`` names a server instead. Parameters are immutable in MLflow: a resumed run logs
only the keys it does not have yet. Metrics go in one batched call (1,000 at most, MLflow's limit)
per interval: 1,000 points take 4 s batched and 90 s one by one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from experiment.config import StrictModel
from experiment.errors import EnvironmentError_

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
_METRICS_PER_CALL = 1000
_PARAM_LENGTH = 6000
_PARAMS_PER_CALL = 100


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


class Tracker(Protocol):
    """What a stage sees of tracking."""

    @property
    def info(self) -> TrackingInfo | None:
        """Handle for :func:`attach` in another process; None when tracking is off."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys the run already has are left alone."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step in one call."""

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

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""


class MlflowTracker:
    """Tracking in one MLflow run."""

    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow.tracking import MlflowClient

        self.info: TrackingInfo | None = TrackingInfo(uri=uri, run_id=run_id)
        self._run_id = run_id
        self._client = MlflowClient(tracking_uri=uri)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys the run already has are left alone."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        fresh = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in params.items() if key not in known]
        for start in range(0, len(fresh), _PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=fresh[start : start + _PARAMS_PER_CALL])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        for start in range(0, len(entries), _METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=entries[start : start + _METRICS_PER_CALL])

    def log_final(self, metrics: Mapping[str, float]) -> None:
        """Log the results of a stage; metrics that have a curve already keep it as it is."""
        known = self._client.get_run(self._run_id).data.metrics
        self.log_metrics({key: value for key, value in metrics.items() if key not in known})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file."""
        self._client.log_artifact(self._run_id, str(path), folder or None)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, overwriting."""
        for key, value in tags.items():
            self._client.set_tag(self._run_id, key, value)

    def terminate(self, status: RunStatus) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run_id, status)

    def reopen(self) -> None:
        """Mark an ended run as running again (resume, requeue)."""
        self._client.update_run(self._run_id, status="RUNNING")


def job_tags() -> dict[str, str]:
    """Tags that say which Slurm job works on a run; empty outside Slurm. A requeued job overwrites them."""
    names = {
        "slurm.job_id": "SLURM_JOB_ID", "slurm.restarts": "SLURM_RESTART_COUNT",
        "slurm.nodes": "SLURM_JOB_NODELIST", "slurm.cluster": "SLURM_CLUSTER_NAME",
    }  # fmt: skip
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    return {tag: os.environ.get(name, "0") for tag, name in names.items()}


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
        parent_run_id: parent run of a stage.

    Raises:
        EnvironmentError_: the store cannot be reached.
    """
    if not config.enabled:
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri = config.uri or default_uri(run_dir)
    try:
        client = MlflowClient(tracking_uri=uri)
        if run_id is not None:
            try:
                client.get_run(run_id)
            except MlflowException:
                run_id = None
        if run_id is None:
            experiment_id = _experiment_id(client, config, run_dir)
            tags = {} if parent_run_id is None else {MLFLOW_PARENT_RUN_ID: parent_run_id}
            run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        tracker = MlflowTracker(uri, run_id)
        tracker.reopen()
    except (MlflowException, OSError) as error:
        raise EnvironmentError_(
            "cannot reach the MLflow store",
            where="tracking.uri",
            got=f"{uri}: {error}",
            fix="start the server, correct the URI, or set tracking.enabled=false",
        ) from error
    return tracker


def _experiment_id(client: Any, config: TrackingConfig, run_dir: Path) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(config.experiment)) is not None:
        return str(found.experiment_id)
    location = None
    if config.uri is None:
        location = (run_dir.resolve().parent / "mlartifacts" / config.experiment).as_uri()
    try:
        return str(client.create_experiment(config.experiment, artifact_location=location))
    except MlflowException:
        # Another process created it between the two calls.
        found = client.get_experiment_by_name(config.experiment)
        if found is None:
            raise
        return str(found.experiment_id)
