"""The tracker against a real MLflow SQLite store, read back with MLflow's own client."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from toy_stages import ToyConfig

from experiment.errors import DataError, EnvironmentError_
from experiment.graph import Graph, Stage
from experiment.stage import StageContext
from experiment.tracking import MlflowTracker, TrackingConfig, TrackingInfo, attach, default_uri, open_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking") / "runs" / "x"


@pytest.fixture(scope="module")
def client(run_dir: Path) -> MlflowClient:
    run_dir.mkdir(parents=True)
    return MlflowClient(tracking_uri=default_uri(run_dir))


def graph(run_dir: Path, **options: object) -> Graph:
    stages = [
        Stage("first", ToyConfig(text="a"), (), "toy_stages:write"),
        Stage("second", ToyConfig(text="bb", **options), ("first",), "toy_stages:write"),
    ]
    context = StageContext(workers=1, experiment_name="x")
    return Graph(stages, run_dir, context, TrackingConfig(experiment="unit"), lambda line: None)


def test_parent_and_child_runs(run_dir: Path, client: MlflowClient) -> None:
    made = graph(run_dir)
    made.run(list(made.stages.values()), ToyConfig())
    experiment = client.get_experiment_by_name("unit")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"x", "first", "second"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["second"].data.tags["mlflow.parentRunId"] == runs["x"].info.run_id
    assert runs["second"].data.params["text"] == "bb"
    assert runs["second"].data.metrics["toy/letters"] == 2
    assert runs["second"].data.metrics["stage/seconds"] > 0
    assert [item.path for item in client.list_artifacts(runs["second"].info.run_id)] == ["out.txt"]
    assert (run_dir.parent / "mlflow.db").is_file()


def test_failure_is_recorded_and_the_next_run_continues_the_parent(
    run_dir: Path, client: MlflowClient
) -> None:
    with pytest.raises(DataError):
        made = graph(run_dir, fail=True)
        made.run(list(made.stages.values()), ToyConfig())
    experiment = client.get_experiment_by_name("unit")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs if run.info.run_name == "second") == ["FAILED", "FINISHED"]
    parents = [run for run in runs if run.info.run_name == "x"]
    assert [run.info.status for run in parents] == ["FAILED"], "one parent, opened again"


def test_parameters_are_logged_once_and_metrics_in_batches(run_dir: Path, client: MlflowClient) -> None:
    tracker = open_run(TrackingConfig(experiment="unit"), run_dir, "many")
    assert tracker is not None and tracker.info is not None
    tracker.log_params({"lr": 1, "long": "x" * 10_000})
    tracker.log_params({"lr": 2, "new": 3})
    tracker.log_metrics({f"m/{number}": number for number in range(1500)}, step=7)
    run = client.get_run(tracker.info.run_id)
    assert run.data.params["lr"] == "1" and run.data.params["new"] == "3"
    assert len(run.data.params["long"]) == 6000
    assert len(run.data.metrics) == 1500
    assert client.get_metric_history(tracker.info.run_id, "m/3")[0].step == 7


def test_attach_continues_in_another_process_by_value(run_dir: Path, client: MlflowClient) -> None:
    tracker = open_run(TrackingConfig(experiment="unit"), run_dir, "attached")
    assert tracker is not None and tracker.info is not None
    other = attach(TrackingInfo.model_validate_json(tracker.info.model_dump_json()))
    other.log_metrics({"train/loss": 1.5}, step=3)
    assert client.get_run(tracker.info.run_id).data.metrics == {"train/loss": 1.5}
    assert attach(None).info is None


def test_switched_off_and_unreachable(run_dir: Path) -> None:
    assert open_run(TrackingConfig(enabled=False), run_dir, "x") is None
    with pytest.raises(EnvironmentError_, match=r"cannot reach the MLflow store[\s\S]*tracking\.uri"):
        open_run(TrackingConfig(uri="sqlite:////dev/null/folder/mlflow.db"), run_dir, "x")


def test_vanished_run_is_replaced(run_dir: Path) -> None:
    tracker = open_run(TrackingConfig(experiment="unit"), run_dir, "again", run_id="0" * 32)
    assert isinstance(tracker, MlflowTracker) and tracker.info is not None
    assert tracker.info.run_id != "0" * 32
