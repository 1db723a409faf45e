"""MLflow: an embedded SQLite file beside the runs, so nothing has to be started; ``tracking.uri`` names a server.

Parameters are immutable in MLflow: a resumed run logs only the keys it does not have yet. Metrics go in one
batched call (1,000 at most, MLflow's limit) for all lines at hand: 1,000 points take 4 s batched and 90 s one by one.
A tag of the run holds the last step of every kind of line, set in the same call.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tsugiki.experiment.errors import EnvironmentError_
from tsugiki.experiment.run.manifest import git_revision
from tsugiki.experiment.tracking.sqlite_store import ensure_store, sqlite_file, sqlite_uri
from tsugiki.experiment.tracking.tracker import TRACKERS, Point, RunRequest, RunStatus, Tracker

_METRICS_PER_CALL = 1000
_PARAM_LENGTH = 6000
_PARAMS_PER_CALL = 100
_NOT_IN_A_NAME = re.compile(r"[^\w\-. /:]")
_LOGGED_TAG = "tsugiki.logged_steps"
_ANSWER_SECONDS = 5.0
"""Within which a server has to answer anything at all before a run is opened."""


@TRACKERS.register("mlflow")
class MlflowTracker(Tracker):
    """One MLflow run."""

    library = "mlflow"

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self._run_id = uri, run_id

    @classmethod
    def open(cls, request: RunRequest) -> Self:
        """Open a run, or the one of that id again; one that the store does not have any more is replaced.

        Raises:
            EnvironmentError_: the store cannot be reached.
        """
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        uri = _uri(request)
        try:
            _prepare(uri)
            tracker = cls(uri, _run_id(_connect(uri), request))
            tracker._client.update_run(tracker.run_id, status="RUNNING")  # resume, requeue
        except Exception as error:  # of SQLAlchemy, requests, MLflow: each store has its own
            raise EnvironmentError_(
                "cannot reach the MLflow store",
                where="tracking.uri",
                got=f"{uri}: {type(error).__name__}: {str(error).strip().split(chr(10))[0]}",
                fix="start the server, correct the URI, or set tracking.enabled=false",
            ) from error
        return tracker

    @classmethod
    def unreachable(cls, request: RunRequest) -> Self | None:
        """The store may come back: every call tries to connect."""
        return None if request.run_id is None else cls(_uri(request), request.run_id)

    @property
    def run_id(self) -> str:
        """MLflow's."""
        return self._run_id

    @functools.cached_property
    def _client(self) -> Any:
        """Connects at the first use: that may fail, too."""
        return _connect(self.uri)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; keys the run already has are left alone."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        named = {_NOT_IN_A_NAME.sub("_", key): value for key, value in params.items()}
        fresh = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in named.items() if key not in known]
        for start in range(0, len(fresh), _PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=fresh[start : start + _PARAMS_PER_CALL])

    def send(self, points: Sequence[Point], logged: Mapping[str, int]) -> None:
        """Write lines of curves; the tag comes with the last part, so after a failure all is sent again."""
        from mlflow.entities import Metric, RunTag

        entries = [
            Metric(key, float(value), point.milliseconds, point.step)
            for point in points
            for key, value in point.metrics.items()
        ]
        for start in range(0, len(entries), _METRICS_PER_CALL):
            last = start + _METRICS_PER_CALL >= len(entries)
            tags = [RunTag(_LOGGED_TAG, json.dumps(logged))] if last and logged else []
            self._client.log_batch(
                self._run_id, metrics=entries[start : start + _METRICS_PER_CALL], tags=tags
            )

    def read_logged(self) -> Mapping[str, int]:
        """From the tag."""
        steps: dict[str, int] = json.loads(
            self._client.get_run(self._run_id).data.tags.get(_LOGGED_TAG, "{}")
        )
        return steps

    def metric_names(self) -> Collection[str]:
        """Metrics that the run has."""
        names: Collection[str] = self._client.get_run(self._run_id).data.metrics
        return names

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


def default_uri(run_dir: Path) -> str:
    """URI of the embedded store: ``mlflow.db`` in the folder that holds the run directories."""
    return sqlite_uri(run_dir.resolve().parent / "mlflow.db")


def _uri(request: RunRequest) -> str:
    return request.uri or default_uri(request.run_dir)


def _prepare(uri: str) -> None:
    """Make the file of the embedded store, or ask a server for a sign of life.

    MLflow's own first call would wait as long as its largest upload may take.

    Raises:
        OSError: no answer (requests' errors are of this kind), or the file cannot be made.
        EnvironmentError_: another process makes the file and does not get done.
    """
    if (file := sqlite_file(uri)) is not None:
        ensure_store(file)
    elif uri.startswith(("http:", "https:")):
        import requests

        # Any answer will do, also a refusal: MLflow's client has the credentials and certificates.
        with contextlib.suppress(requests.exceptions.SSLError):
            requests.get(uri, timeout=_ANSWER_SECONDS, stream=True, allow_redirects=False).close()


def _connect(uri: str) -> Any:
    """MLflow's client, whose seven retries of two minutes each would hold up a job for a quarter of an hour."""
    for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")):
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _run_id(client: Any, request: RunRequest) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    if request.run_id is not None:
        try:
            client.get_run(request.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            return request.run_id
    tags = _origin()
    if request.parent_run_id is not None:
        tags[MLFLOW_PARENT_RUN_ID] = request.parent_run_id
    created = client.create_run(_experiment_id(client, request), tags=tags, run_name=request.name)
    return str(created.info.run_id)


def _origin() -> dict[str, str]:
    """Who ran what: tags of MLflow's own columns, which its client leaves out; whether the checkout was changed."""
    from mlflow.tracking.context import registry
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    tags: dict[str, str] = dict(registry.resolve_tags())
    # MLflow looks for the repository of the script, which is that of a user's own where Tsugiki is installed.
    tags.pop(MLFLOW_GIT_COMMIT, None)
    if (revision := git_revision()) is not None:
        tags[MLFLOW_GIT_COMMIT] = revision.removesuffix("-dirty")
        tags["tsugiki.git.dirty"] = str(revision.endswith("-dirty")).lower()
    return tags


def _experiment_id(client: Any, request: RunRequest) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(request.experiment)) is not None:
        return str(found.experiment_id)
    location = None
    if request.uri is None or not request.uri.startswith(("http:", "https:", "databricks")):
        # A store without a server puts artefacts into the current directory unless told otherwise.
        location = (request.run_dir.resolve().parent / "mlartifacts" / request.experiment).as_uri()
    try:
        return str(client.create_experiment(request.experiment, artifact_location=location))
    except MlflowException:
        # Another process created it between the two calls.
        found = client.get_experiment_by_name(request.experiment)
        if found is None:
            raise
        return str(found.experiment_id)
