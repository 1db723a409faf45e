"""Runs in MLflow: a real SQLite store, read back with MLflow's own client."""

from __future__ import annotations

import getpass
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from toy_stages import ToyConfig

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.manifest import git_revision
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.runs import Trackers, TrackingFailed, open_run
from tsugiki.experiment.tracking.tracker import Point
from tsugiki.experiment.tracking.trackers.mlflow import MlflowTracker, default_uri
from tsugiki.pretrain.training.metrics import follower
from tsugiki.pretrain.training.metrics.follower import MetricsFollower


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
    for made_by in runs.values():
        tags = made_by.data.tags
        assert tags["mlflow.user"] == getpass.getuser() and tags["mlflow.source.name"]
        if (revision := git_revision()) is not None:
            assert tags["mlflow.source.git.commit"] == revision.removesuffix("-dirty")
            assert tags["tsugiki.git.dirty"] == str("dirty" in revision).lower()


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


def mlflow_run(run_dir: Path, name: str, **options: Any) -> tuple[Trackers, str]:
    tracker = open_run(TrackingConfig(experiment="unit"), run_dir, name, **options)
    return tracker, tracker.run_ids["mlflow"]


def test_parameters_are_logged_once_and_metrics_in_batches(run_dir: Path, client: MlflowClient) -> None:
    tracker, run_id = mlflow_run(run_dir, "many")
    tracker.log_params({"lr": 1, "long": "x" * 10_000})
    tracker.log_params({"lr": 2, "new": 3})
    tracker.log_metrics({f"m/{number}": number for number in range(1500)}, step=7)
    run = client.get_run(run_id)
    assert run.data.params["lr"] == "1" and run.data.params["new"] == "3"
    assert len(run.data.params["long"]) == 6000
    assert len(run.data.metrics) == 1500
    assert client.get_metric_history(run_id, "m/3")[0].step == 7


def line(step: int, kind: str = "train", **metrics: float) -> Point:
    return Point(step, 1000 + step, {f"{kind}/{name}": value for name, value in metrics.items()})


def test_a_curve_sent_again_is_logged_once(run_dir: Path, client: MlflowClient) -> None:
    """As after a kill: another process sends the lines from the beginning, and goes on."""
    first, run_id = mlflow_run(run_dir, "curve")
    first.log_points([line(1, loss=3.0), line(2, loss=2.0), line(2, "validation", loss=2.5)])
    other, same = mlflow_run(run_dir, "curve", run_ids=first.run_ids)
    assert same == run_id
    other.log_points(
        [line(1, loss=3.0), line(2, loss=2.0), line(2, "validation", loss=2.5), line(3, loss=1.0)]
    )
    other.log_points([Point(4, 1004, {})])
    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((point.step, point.value, point.timestamp) for point in history) == [
        (1, 3.0, 1001), (2, 2.0, 1002), (3, 1.0, 1003)
    ]  # fmt: skip
    assert len(client.get_metric_history(run_id, "validation/loss")) == 1


def test_many_lines_go_in_one_call(
    run_dir: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 1,000 points a call, which is MLflow's limit."""
    tracker, run_id = mlflow_run(run_dir, "batches")
    calls = []
    original = MlflowClient.log_batch
    monkeypatch.setattr(
        MlflowClient, "log_batch",
        lambda self, run, metrics=(), **rest: (calls.append(len(metrics)), original(self, run, metrics, **rest))[1],
    )  # fmt: skip
    tracker.log_points([line(step, loss=step, norm=step) for step in range(600)])
    tracker.log_points([line(600, loss=1.0, norm=1.0)])
    assert calls == [1000, 200, 2]
    assert len(client.get_metric_history(run_id, "train/norm")) == 601


def append(path: Path, *steps: int) -> None:
    with path.open("a", encoding="utf-8") as stream:
        for step in steps:
            metrics = {"step": step, "phase": "a", "train/loss": float(step), "seconds": step}
            stream.write(json.dumps(metrics) + "\n")


def test_a_failing_store_does_not_end_training(
    run_dir: Path, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once; what could not be sent goes with the next lines. A half line waits for its end."""
    monkeypatch.setattr(follower, "_INTERVAL_SECONDS", 0.05)
    tracker, run_id = mlflow_run(run_dir, "failing")
    failures = iter([ConnectionError("store is down"), ConnectionError("still down")])
    original = tracker.members["mlflow"].send

    def send(*arguments: Any) -> None:
        for failure in failures:
            raise failure
        original(*arguments)

    tracker.members["mlflow"].send = send  # type: ignore[method-assign]
    said: list[str] = []
    path = tmp_path / "metrics.jsonl"
    with MetricsFollower(path, tracker, said.append):
        for step in range(3):
            append(path, step)
            time.sleep(0.2)
        append(path, 3)
        with path.open("a", encoding="utf-8") as stream:
            stream.write('{"step": 4, "train/lo')
    assert said == ["tracking fails, training goes on: mlflow: ConnectionError: store is down"]
    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_switched_off_and_unreachable(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not open_run(TrackingConfig(enabled=False), run_dir, "x")
    assert not open_run(TrackingConfig(trackers=["none"]), run_dir, "x")
    assert not open_run(TrackingConfig(uri="sqlite:////dev/null/folder/mlflow.db"), run_dir, "x")
    assert (
        "tracking fails, the work goes on: mlflow: cannot reach the MLflow store: sqlite:////dev/null/folder"
        in capfd.readouterr().err
    )


def test_a_run_that_goes_on_is_not_stopped_by_its_store(
    run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing but a curve, which its thread sends again, raises; it is said once."""
    config = TrackingConfig(uri="sqlite:////dev/null/folder/mlflow.db")
    tracker = open_run(config, run_dir, "x", run_ids={"mlflow": "0" * 32})
    assert tracker.run_ids == {"mlflow": "0" * 32}, "the store may come back"
    tracker.log_params({"lr": 1})
    tracker.set_tags({"tag": "x"})
    tracker.log_metrics({"train/loss": 1.0})
    tracker.log_final({"train/loss": 1.0})
    tracker.log_artifact(tmp_path)
    tracker.terminate("KILLED")
    with pytest.raises(TrackingFailed, match=r"mlflow: .*/dev/null"):
        tracker.log_points([line(1, loss=1.0)])
    assert capfd.readouterr().err.count("tracking fails, the work goes on: mlflow: ") == 1


def test_vanished_run_is_replaced(run_dir: Path) -> None:
    tracker, run_id = mlflow_run(run_dir, "again", run_ids={"mlflow": "0" * 32})
    assert isinstance(tracker.members["mlflow"], MlflowTracker)
    assert run_id != "0" * 32


def test_artefacts_of_a_file_store_lie_beside_the_run(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/elsewhere.db")
    open_run(config, run_dir, "x")
    experiment = MlflowClient(tracking_uri=config.uri).get_experiment_by_name(config.experiment)
    assert experiment.artifact_location.startswith(run_dir.resolve().parent.as_uri())
    assert not (tmp_path / "mlruns").exists()


def test_the_parent_carries_what_was_measured_last(run_dir: Path, client: MlflowClient) -> None:
    """So that a table of experiments ranks them."""
    other = run_dir.with_name("y")
    for text in ("bb", "ccc"):
        made = graph(other)
        made.stages["second"] = replace(made.stages["second"], config=ToyConfig(text=text))
        made.run(list(made.stages.values()), ToyConfig())
        parent = client.get_run(json.loads((other / "mlflow.json").read_text())["experiment"])
        assert parent.data.metrics["toy/letters"] == len(text)
        assert parent.data.metrics["second/seconds"] > 0
