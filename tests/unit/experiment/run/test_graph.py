from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from toy_stages import ToyConfig

from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, TsugikiError
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage import StageContext


def build(
    run_dir: Path, a: str = "a", b: str = "b", middle: str = "write", seed: int = 1, **options: object
) -> Graph:
    stages = [
        Stage("first", ToyConfig(text=a), (), "toy_stages:write"),
        Stage("second", ToyConfig(text=b), ("first",), f"toy_stages:{middle}"),
        Stage("third", ToyConfig(text="c", **options), ("second",), "toy_stages:write"),
    ]
    return Graph(stages, run_dir, StageContext(seed=seed, workers=1), None, lambda line: None)


def run_all(graph: Graph, force: bool = False) -> dict[str, str]:
    """Actions that were taken, found by watching which manifests changed."""
    before = {name: _stamp(graph, name) for name in graph.stages}
    graph.run(list(graph.stages.values()), ToyConfig(), force=force)
    return {name: "skip" if _stamp(graph, name) == before[name] else "run" for name in graph.stages}


def _stamp(graph: Graph, name: str) -> int | None:
    path = graph.directory(name) / "manifest.json"
    return path.stat().st_mtime_ns if path.exists() else None


def test_runs_in_order_then_skips(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    assert set(run_all(build(run_dir)).values()) == {"run"}
    assert (run_dir / "third" / "out.txt").read_text() == "abc"
    assert set(run_all(build(run_dir)).values()) == {"skip"}
    assert not (run_dir / "first" / ".work").exists()
    assert not list(run_dir.glob("*.partial"))


def test_redoes_exactly_what_follows_a_change(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    run_all(build(run_dir))
    assert run_all(build(run_dir, b="B")) == {"first": "skip", "second": "run", "third": "run"}
    assert (run_dir / "third" / "out.txt").read_text() == "aBc"


def test_unchanged_output_stops_the_redoing(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    run_all(build(run_dir, middle="constant"))
    assert run_all(build(run_dir, a="other", middle="constant")) == {
        "first": "run", "second": "run", "third": "skip",
    }  # fmt: skip


def test_field_outside_the_fingerprint_does_not_redo_but_seed_does(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    run_all(build(run_dir))
    assert set(run_all(build(run_dir, log_interval=7)).values()) == {"skip"}
    assert run_all(build(run_dir, seed=2))["first"] == "run"


def test_damaged_output_is_redone(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    graph = build(run_dir)
    run_all(graph)
    (run_dir / "second" / "out.txt").write_text("")
    decision = graph.decide(graph.stages["second"])
    assert (decision.action, decision.reason) == ("run", "out.txt has 0 bytes, expected 2")
    assert run_all(graph) == {"first": "skip", "second": "run", "third": "skip"}


def test_force_redoes_all(tmp_path: Path) -> None:
    graph = build(tmp_path / "runs" / "x")
    run_all(graph)
    assert set(run_all(graph, force=True).values()) == {"run"}


def test_failure_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    graph = build(run_dir, fail=True)
    with pytest.raises(DataError, match="toy failure"):
        run_all(graph)
    assert graph.complete("second") is not None
    assert graph.complete("third") is None
    assert not (run_dir / "third").exists()
    assert run_all(build(run_dir)) == {"first": "skip", "second": "skip", "third": "run"}


def test_failed_redo_keeps_the_earlier_result(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    run_all(build(run_dir))
    with pytest.raises(DataError):
        run_all(build(run_dir, fail=True))
    assert (run_dir / "third" / "out.txt").read_text() == "abc"


def test_full_disk_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(TsugikiError, match=r"no space left on the device in stage 'third'[\s\S]*bytes free"):
        run_all(build(tmp_path / "runs" / "x", fail_with_oserror=28))


def test_manifest_tells_origin(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    run_all(build(run_dir))
    first, second = Manifest.load(run_dir / "first"), Manifest.load(run_dir / "second")
    assert first is not None and second is not None
    assert second.inputs == {"first": first.digest}
    assert first.config is not None and first.config["text"] == "a"
    assert first.counts == {"letters": 1}
    # printf a | sha256sum
    assert (
        first.outputs["out.txt"].sha256 == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    )
    assert "torch" in first.versions


def test_selection(tmp_path: Path) -> None:
    graph = build(tmp_path / "runs" / "x")
    assert [stage.name for stage in graph.select("second", None)] == ["second", "third"]
    assert [stage.name for stage in graph.select(None, "first")] == ["first"]
    with pytest.raises(ConfigError, match="--from names no stage"):
        graph.select("sceond", None)
    with pytest.raises(ConfigError, match="comes after"):
        graph.select("third", "first")
    with pytest.raises(CheckpointError, match="'second' needs the output of stage 'first'"):
        graph.run(graph.select("second", "second"), ToyConfig())


def test_preview_starts_nothing(tmp_path: Path) -> None:
    graph = build(tmp_path / "runs" / "x")
    assert [item.action for item in graph.preview(list(graph.stages.values()))] == ["run", "run", "run"]
    assert not (tmp_path / "runs" / "x").exists()
    run_all(graph)
    changed = build(tmp_path / "runs" / "x", b="B")
    previewed = {item.stage: item for item in changed.preview(list(changed.stages.values()))}
    assert [item.action for item in previewed.values()] == ["skip", "run", "run"]
    assert previewed["second"].reason == "changed: configuration"
    assert "unless their output stays the same" in previewed["third"].reason


def test_external_input_by_content(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "out.txt").write_text("base")

    def graph() -> Graph:
        stage = Stage("only", ToyConfig(text="x"), ("base",), "toy_stages:write", {"base": base})
        return Graph([stage], tmp_path / "runs" / "x", StageContext(workers=1), None, lambda line: None)

    assert run_all(graph()) == {"only": "run"}
    assert run_all(graph()) == {"only": "skip"}
    os.utime(base / "out.txt", ns=(1, 1))
    assert run_all(graph()) == {"only": "skip"}, "same content under another date"
    (base / "out.txt").write_text("changed")
    assert run_all(graph()) == {"only": "run"}
    (base / "out.txt").unlink()
    base.rmdir()
    with pytest.raises(ConfigError, match="the base given does not exist"):
        run_all(graph())


def test_source_files_decide(tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text("one")

    def graph() -> Graph:
        stage = Stage("only", ToyConfig(), (), "toy_stages:write", sources=lambda: [source])
        return Graph([stage], tmp_path / "runs" / "x", StageContext(workers=1), None, lambda line: None)

    run_all(graph())
    source.write_text("two")
    decision = graph().decide(graph().stages["only"])
    assert decision.reason == "changed: source files"


def _countdown_graph(run_dir: Path, text: str = "x") -> Graph:
    stage = Stage("train", ToyConfig(text=text), (), "toy_stages:countdown", keep_partial=True, precious=True)
    return Graph([stage], run_dir, StageContext(workers=1), None, lambda line: None)


def _run_countdown(run_dir: Path, kill_after: int) -> None:
    os.environ["TOY_KILL_AFTER"] = str(kill_after)
    graph = _countdown_graph(run_dir)
    graph.run(list(graph.stages.values()), ToyConfig())


def test_killed_stage_continues_where_it_was(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    process = multiprocessing.get_context("spawn").Process(target=_run_countdown, args=(run_dir, 3))
    process.start()
    process.join()
    assert process.exitcode == -9
    graph = _countdown_graph(run_dir)
    assert graph.complete("train") is None
    assert graph.decide(graph.stages["train"]).action == "resume"
    run_all(graph)
    assert (run_dir / "train" / "starts.txt").read_text() == "0\n3\n"


def test_changed_training_sets_checkpoints_aside(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    run_all(_countdown_graph(run_dir))
    run_all(_countdown_graph(run_dir, text="other"))
    assert (run_dir / "train.superseded-1" / "step-4").exists()
    assert (run_dir / "train" / "step-4").exists()


def test_run_directory_is_locked(tmp_path: Path) -> None:
    import fcntl

    run_dir = tmp_path / "runs" / "x"
    run_dir.mkdir(parents=True)
    with (run_dir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process works in this run directory"):
            run_all(build(run_dir))


def test_partial_key_is_json(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "x"
    with pytest.raises(DataError):
        run_all(build(run_dir, fail=True))
    stored = json.loads((run_dir / "third.partial" / ".key.json").read_text())
    assert set(stored) == {"key", "parts"}


@pytest.mark.parametrize(
    "left", ["manifest.json.partial", "report.json.4711.partial", "checkpoints/latest.json.partial"]
)
def test_killed_while_a_small_file_was_written(tmp_path: Path, left: str) -> None:
    """What a kill leaves of a file that appears complete or not at all is no part of the result.

    Listed in the manifest, `manifest.json.partial` became the manifest: a file of the finished stage was missing, and
    its training began anew.
    """
    run_dir = tmp_path / "runs" / "x"
    graph = _countdown_graph(run_dir)
    stage = graph.stages["train"]
    (graph.prepare(stage) / left).parent.mkdir(exist_ok=True)
    (graph.partial("train") / left).write_text("{")
    (run_dir / "config.yaml.4711.partial").write_text("na")
    assert graph.decide(stage).action == "resume"
    run_all(graph)
    assert graph.complete("train") is not None
    assert graph.decide(stage).action == "skip"
    assert not list(run_dir.rglob("*.partial"))
