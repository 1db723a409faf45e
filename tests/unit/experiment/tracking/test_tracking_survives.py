"""Nothing a tracker does stops the work: kills while its store is made, several at once, a silent server."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import alembic.command
import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from patience import patience
from toy_stages import ToyConfig

from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.tracking import runs, sqlite_store
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.runs import open_run
from tsugiki.experiment.tracking.tracker import Point
from tsugiki.experiment.tracking.trackers import mlflow
from tsugiki.experiment.tracking.trackers.mlflow import default_uri


@pytest.fixture(autouse=True)
def fresh_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_pauses", runs.Pauses())


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process that never returns into pytest; its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def die(*arguments: object, **keywords: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KILLS: dict[str, tuple[object, str]] = {
    "before anything is written": (sqlite_store, "_make"),
    "first tables, no version": (alembic.command, "upgrade"),
    "schema without an experiment": (SqlAlchemyStore, "_initialize_store_state"),
    "complete, not renamed": (Path, "rename"),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_while_the_store_is_made_leaves_no_trace(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    run_dir = tmp_path / "x"
    with monkeypatch.context() as patch:
        patch.setattr(*KILLS[moment], die)
        child = in_child(lambda: open_run(TrackingConfig(), run_dir, "x"))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()

    monkeypatch.setattr(sqlite_store, "_make", lambda path: path.write_bytes(store.read_bytes()))
    opened = open_run(TrackingConfig(), run_dir, "x")
    assert MlflowClient(default_uri(run_dir)).get_run(opened.run_ids["mlflow"]).info.run_name == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as it is after its creation: making one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    sqlite_store.ensure_store(path)
    return path


def half_made(path: Path, store: Path) -> None:
    with sqlite3.connect(path) as half:
        half.execute("CREATE TABLE experiments (name TEXT)")


def without_experiment(path: Path, store: Path) -> None:
    path.write_bytes(store.read_bytes())
    with sqlite3.connect(path) as half:
        half.execute("DELETE FROM experiments")


def overwritten(path: Path, store: Path) -> None:
    path.write_bytes(b"\0" * 8192)


def empty(path: Path, store: Path) -> None:
    path.touch()


@pytest.mark.parametrize("damage", [half_made, without_experiment, overwritten, empty])
def test_a_broken_store_is_set_aside(
    damage: Callable[[Path, Path], None],
    tmp_path: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(tmp_path / "mlflow.db", store)
    broken = (tmp_path / "mlflow.db").read_bytes()
    monkeypatch.setattr(sqlite_store, "_make", lambda path: path.write_bytes(store.read_bytes()))
    opened = open_run(TrackingConfig(), tmp_path / "x", "x")
    assert opened.run_ids["mlflow"]
    assert (tmp_path / "mlflow.db.broken-1").read_bytes() == broken
    assert "is broken" in capfd.readouterr().err


def test_a_store_that_is_locked_or_of_an_older_mlflow_stays(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(store.read_bytes())
    with sqlite3.connect(path) as older:
        older.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    sqlite_store.ensure_store(path)
    assert open_run(TrackingConfig(), tmp_path / "x", "x").run_ids == {}, "said, and the work goes on"
    assert not (tmp_path / "mlflow.db.broken-1").exists()


def test_three_experiments_at_once_in_a_fresh_folder(tmp_path: Path) -> None:
    def work(name: str) -> None:
        opened = open_run(TrackingConfig(), tmp_path / name, name)
        opened.log_metrics({"train/loss": 1.0})
        assert opened.run_ids["mlflow"]

    children = [in_child(lambda name=name: work(name)) for name in "abc"]  # type: ignore[misc]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    client = MlflowClient(default_uri(tmp_path / "a"))
    [experiment] = client.search_experiments(filter_string="name = 'tsugiki'")
    found = client.search_runs([experiment.experiment_id])
    assert sorted((run.info.run_name, run.data.metrics["train/loss"]) for run in found) == [
        ("a", 1.0), ("b", 1.0), ("c", 1.0)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a?b=c", "a%20b", "a#b", "[a-c]*", "a b", "語"])
def test_the_store_lies_beside_the_run_whatever_its_path(
    name: str, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "_make", lambda path: path.write_bytes(store.read_bytes()))
    folder = tmp_path / name
    opened = open_run(TrackingConfig(), folder / "x", "x")
    (tmp_path / "page.txt").write_text("page")
    opened.log_artifact(tmp_path / "page.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "page.txt"])
    with sqlite3.connect(folder / "mlflow.db") as read:
        [(run_id, status)] = read.execute("SELECT run_uuid, status FROM runs").fetchall()
    assert (run_id, status) == (opened.run_ids["mlflow"], "RUNNING")
    assert sqlite_store.sqlite_file(default_uri(folder / "x")) == folder / "mlflow.db"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections (the kernel does, for those in its queue) and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_silent_server_stops_nothing(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Waited for once, by the run of the experiment; the stages do not wait again."""
    monkeypatch.setattr(mlflow, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(runs, "_SLOW_FAILURE_SECONDS", 0.2)
    stages = [Stage(name, ToyConfig(text=name), (), "toy_stages:write") for name in ("a", "b", "c")]
    context = StageContext(workers=1, experiment_name="x")
    graph = Graph(stages, tmp_path / "x", context, TrackingConfig(uri=silent_server), lambda line: None)
    started = time.monotonic()
    graph.run(stages, ToyConfig())
    assert time.monotonic() - started < patience(3)
    assert all(graph.complete(name) for name in ("a", "b", "c"))
    assert "tracking fails, the work goes on: mlflow: " in capfd.readouterr().err


def test_a_server_that_falls_silent_is_left_alone_for_a_minute(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(runs, "_SLOW_FAILURE_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(uri=silent_server)
    opened = open_run(config, tmp_path / "x", "x", run_ids={"mlflow": "0" * 32})
    started = time.monotonic()
    for step in range(5):
        opened.log_metrics({"train/loss": 1.0}, step)
        with pytest.raises(runs.TrackingFailed, match="left alone"):
            opened.log_points([Point(step, 1000, {"train/loss": 1.0})])
    assert time.monotonic() - started < patience(1)
    monkeypatch.setattr(runs, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(runs, "_pauses", runs.Pauses())
    with pytest.raises(runs.TrackingFailed, match="mlflow: MlflowException"):
        opened.log_points([Point(9, 1000, {"train/loss": 1.0})])
