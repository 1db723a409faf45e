"""The trackers side by side: the same names in each, read back with the tracker's own library."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from toy_stages import ToyConfig

from tsugiki.experiment.config.load import RawConfig
from tsugiki.experiment.config.validate import validate
from tsugiki.experiment.errors import ConfigError, EnvironmentError_
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.runs import open_run
from tsugiki.experiment.tracking.tracker import TRACKERS, Point, RunStatus
from tsugiki.pipeline import load_experiment

ROOT = Path(__file__).parents[4]
PARAMS = {"optimizer.learning_rate": 0.003, "text": "bb"}
TAGS = {"slurm.job_id": "17", "slurm.restarts": "1"}
CURVE = [
    Point(1, 1_700_000_001_000, {"train/loss": 3.0, "train/grad_norm": 1.5}),
    Point(2, 1_700_000_002_000, {"train/loss": 2.0, "train/grad_norm": 1.25}),
    Point(2, 1_700_000_002_500, {"validation/loss/ja": 2.5}),
    Point(1, 1_700_000_002_750, {"checkpoint/seconds": 0.5}),  # of an earlier step, written in the background
    Point(3, 1_700_000_003_000, {"train/loss": 1.0, "train/grad_norm": 1.125}),
]
FINAL = {"train/loss": 1.0, "stage/seconds": 12.5}


def configured(**tracking: Any) -> TrackingConfig:
    return validate(TrackingConfig, RawConfig(tracking, {}))


def begin(config: TrackingConfig, run_dir: Path, end: RunStatus | None = None) -> list[dict[str, str]]:
    """The first three lines, and a kill unless it says how it ends; ids of the parent and of the run."""
    parent = open_run(config, run_dir, "x")
    first = open_run(config, run_dir, "train", parent_run_ids=parent.run_ids)
    first.log_params(PARAMS)
    first.set_tags({"slurm.job_id": "16"})
    first.log_points(CURVE[:3])
    for tracker in (first, parent):
        if end is not None:
            tracker.terminate(end)
    return [parent.run_ids, first.run_ids]


def go_on(config: TrackingConfig, run_dir: Path, file: Path, begun: list[dict[str, str]]) -> dict[str, str]:
    """All lines sent again from the beginning, and the end."""
    parent = open_run(config, run_dir, "x", run_ids=begun[0])
    again = open_run(config, run_dir, "train", run_ids=begun[1], parent_run_ids=parent.run_ids)
    assert again.run_ids == begun[1]
    again.log_params({"text": "another", **PARAMS})
    again.set_tags(TAGS)
    again.log_points(CURVE)
    again.log_final(FINAL)
    again.log_artifact(file, "report")
    again.terminate("FINISHED")
    parent.terminate("FINISHED")
    return again.run_ids


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    return tmp_path / "runs" / "x"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>page</p>")
    return tmp_path / "report" / "index.html"


def expected_points() -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {"stage/seconds": [(0, 12.5)]}
    for point in CURVE:
        for key, value in point.metrics.items():
            points.setdefault(key, []).append((point.step, value))
    return points


def test_tensorboard_has_the_names_of_mlflow_and_the_curve_once(run_dir: Path, file: Path) -> None:
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    uri = f"sqlite:///{run_dir.parent}/mlflow.db"
    config = configured(trackers=["mlflow", "tensorboard"], uri=uri)
    run_ids = go_on(config, run_dir, file, begin(config, run_dir))
    assert run_ids["tensorboard"] == "x/train"
    folder = run_dir.parent / "tensorboard" / "x" / "train"
    events = EventAccumulator(str(folder)).Reload()
    scalars = {
        key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]
    }
    assert scalars == expected_points()
    assert [event.wall_time for event in events.Scalars("train/loss")] == [
        1_700_000_001.0, 1_700_000_002.0, 1_700_000_003.0
    ]  # fmt: skip
    texts = {
        key: events.Tensors(key)[-1].tensor_proto.string_val[0].decode() for key in events.Tags()["tensors"]
    }
    assert texts == {"optimizer.learning_rate": "0.003", "text": "bb", "status": "FINISHED", **TAGS}
    assert (folder / "artifacts" / "report" / "index.html").read_text() == "<p>page</p>"

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_ids["mlflow"])
    assert set(run.data.metrics) == set(scalars)
    assert set(run.data.params) == set(PARAMS)
    assert {key: run.data.tags[key] for key in TAGS} == TAGS
    for key in scalars:
        found = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))
        assert found == scalars[key]


def test_tensorboard_goes_on_after_a_record_that_a_kill_cut_off(run_dir: Path) -> None:
    config = configured(trackers=["tensorboard"])
    first = open_run(config, run_dir, "train")
    first.log_points(CURVE[:2])
    [events] = (run_dir.parent / "tensorboard" / "train").glob("events.*")
    complete = events.stat().st_size
    first.log_points(CURVE[2:])
    with events.open("r+b") as stream:
        stream.truncate(complete + 20)
    again = open_run(config, run_dir, "train", run_ids=first.run_ids)
    again.log_points(CURVE)
    again.terminate("FINISHED")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(events.parent)).Reload()
    for key in ("train/loss", "validation/loss/ja", "checkpoint/seconds"):
        assert [(event.step, event.value) for event in found.Scalars(key)] == expected_points()[key]


def test_a_new_tensorboard_run_of_a_stage_has_a_folder_of_its_own(run_dir: Path, tmp_path: Path) -> None:
    config = configured(
        trackers=["tensorboard"], options={"tensorboard": {"directory": str(tmp_path / "boards")}}
    )
    ids = [open_run(config, run_dir, "train", parent_run_ids={"tensorboard": "x"}).run_ids for _ in range(2)]
    assert [each["tensorboard"] for each in ids] == ["x/train", "x/train-2"]
    assert (tmp_path / "boards" / "x" / "train-2").is_dir()


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's format: blocks of 32 KiB, wandb's header of 7 bytes in the first.

    A record is one full fragment (type 1), or a first (2), middle (3) and last (4) one, each behind
    checksum (4 bytes), length (2) and type (1).
    """
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if kind == 0:
            return
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install 'tsugiki[wandb]'")
def test_wandb_offline_has_the_same_names(run_dir: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that `wandb sync` would send: records of wandb's own format in a log of LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking = configured(trackers=["wandb"])
    begun = begin(tracking, run_dir, "KILLED")
    run_ids = go_on(tracking, run_dir, file, begun)
    history: dict[str, list[tuple[int, float]]] = {}
    config: dict[str, Any] = {}
    files = []
    logs = run_dir.parent.glob(f"wandb/offline-run-*/run-{run_ids['wandb']}.wandb")
    for log in sorted(logs, key=lambda path: path.stat().st_mtime_ns):
        for data in leveldb_records(log.read_bytes()):
            record = Record.FromString(data)
            rows = {
                "/".join(item.nested_key) or item.key: float(item.value_json) for item in record.history.item
            }
            for key in rows:
                if not key.startswith("_") and key != "step":
                    history.setdefault(key, []).append((int(rows["step"]), rows[key]))
            updates = [*record.config.update, *record.run.config.update]
            config |= {item.key or ".".join(item.nested_key): item.value_json for item in updates}
            files += [item.path for item in record.files.files]
    assert history == expected_points()
    shown = {key: str(value).strip('"') for key, value in config.items() if not key.startswith("_")}
    assert shown == {"optimizer.learning_rate": "0.003", "text": "bb", "status": "FINISHED", **TAGS}
    assert "report/index.html" in files


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    assert TRACKERS.names() == ["mlflow", "none", "tensorboard", "wandb"]
    with pytest.raises(
        ConfigError, match=r"trackers[\s\S]*tensorbord.*mlflow, none, tensorboard, wandb.*did you mean"
    ):
        configured(trackers=["tensorbord"])
    with pytest.raises(ConfigError, match=r"options\.wandb: entty"):
        configured(options={"wandb": {"entty": "team"}})
    with pytest.raises(ConfigError, match="every tracker once"):
        configured(trackers=["mlflow", "mlflow"])


def test_a_tracker_that_is_not_installed_is_refused_before_work_starts(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder `wandb` of runs in the working directory is not the library."""
    (run_dir / "wandb").mkdir()
    monkeypatch.chdir(run_dir)
    hidden = [str(run_dir), *(path for path in sys.path if not (Path(path) / "wandb").exists())]
    monkeypatch.setattr(sys, "path", hidden)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    stage = Stage("first", ToyConfig(), (), "toy_stages:write")
    graph = Graph([stage], run_dir, StageContext(workers=1), configured(trackers=["wandb"]), lambda _: None)
    with pytest.raises(EnvironmentError_, match=r"'wandb' is not installed[\s\S]*tsugiki\[wandb\]"):
        graph.run([stage], ToyConfig())
    assert not graph.partial("first").exists()
    smoke = load_experiment(ROOT / "configs/smoke.yaml", ["tracking.trackers=[wandb]"])
    assert (("tracking", "trackers"), "wandb: pip install 'tsugiki[wandb]'") in smoke.missing_inputs([])


def test_all_trackers_of_an_experiment_keep_their_runs(run_dir: Path) -> None:
    tracking = configured(trackers=["mlflow", "tensorboard"])
    stage = Stage("first", ToyConfig(text="a"), (), "toy_stages:write")
    for _ in range(2):
        graph = Graph(
            [stage], run_dir, StageContext(workers=1, experiment_name="x"), tracking, lambda _: None
        )
        graph.run([stage], ToyConfig(), force=True)
    folders = sorted(path.name for path in (run_dir.parent / "tensorboard" / "x").iterdir() if path.is_dir())
    assert folders == ["first", "first-2"], "one parent, opened again; a stage done again is a new run"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir.parent / "tensorboard" / "x" / "first-2")).Reload()
    assert events.Scalars("toy/letters")[0].value == 1.0
    names: Mapping[str, Any] = events.Tags()
    assert "text" in names["tensors"] and "stage/seconds" in names["scalars"]
