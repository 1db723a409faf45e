"""What lies on the disk and what of it can go: only what carries our mark, nothing that is worked on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toy_stages import ToyConfig
from typer.testing import CliRunner

from tsugiki.cli.main import app
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.housekeeping import find_runs, leftovers, measure, remove
from tsugiki.experiment.run.lock import locked
from tsugiki.experiment.run.stage import StageContext


def make(run_dir: Path, text: str = "x") -> Graph:
    """A run of two stages whose training has been replaced once, with work left over of every kind."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text("name: x\n")
    stages = [
        Stage("corpus", ToyConfig(text="c"), (), "toy_stages:write"),
        Stage("train", ToyConfig(text=text), ("corpus",), "toy_stages:write", precious=True),
        Stage("export", ToyConfig(), ("train",), "toy_stages:write"),
    ]
    graph = Graph(stages, run_dir, StageContext(workers=1), None, lambda line: None)
    graph.run(graph.select(None, "train"), ToyConfig())
    return graph


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run_dir = tmp_path / "runs" / "x"
    make(run_dir)
    graph = make(run_dir, "longer text")  # train.superseded-1
    graph.prepare(graph.stages["train"], force=True)  # forgotten work on a complete stage
    graph.prepare(graph.stages["export"])  # unfinished work
    (run_dir / "tokens.partial").mkdir()
    (run_dir / "tokens.partial" / "mine.txt").write_text("not ours")
    (run_dir / "graft.superseded-1").symlink_to(run_dir / "corpus")
    (run_dir / "notes").mkdir()
    return run_dir


def names(run_dir: Path, *kinds: str) -> list[str]:
    return [item.path.name for item in leftovers(run_dir, kinds)]  # type: ignore[arg-type]


def test_kinds(run: Path) -> None:
    assert names(run, "superseded") == ["train.superseded-1"]
    assert names(run, "partial") == ["train.partial"]
    assert names(run, "unfinished") == ["export.partial"]
    assert names(run, "remakeable") == ["corpus"]  # never train
    (run / "train" / "out.txt").unlink()  # the newer result is damaged: the older one may be the only one
    assert names(run, "superseded", "partial") == []


def test_sizes_count_what_is_freed(run: Path) -> None:
    (item,) = leftovers(run, ["remakeable"])
    whole = sum(path.stat().st_size for path in (run / "corpus").iterdir())
    assert item.bytes == whole
    other = run.with_name("y")
    other.mkdir()
    os.link(run / "corpus" / "out.txt", other / "out.txt")
    (item,) = leftovers(run, ["remakeable"])
    assert item.bytes == whole - len("c")
    found = measure(run)
    assert found.shared_bytes == len("c")
    assert (found.state, found.complete) == ("partial", 2)


def test_command_asks_and_keeps_the_rest(run: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    for arguments, answer in ((["--dry-run"], None), ([], "n\n")):
        done = CliRunner().invoke(app, ["clean", str(run.parent), *arguments], input=answer)
        assert "train.superseded-1" in done.stdout and "frees" in done.stdout
        assert sorted(path.name for path in run.iterdir()) == before
    done = CliRunner().invoke(app, ["clean", str(run), "--unfinished", "--yes"])
    assert done.exit_code == 0, done.stdout
    gone = {"train.superseded-1", "train.partial", "export.partial"}
    assert set(before) - {path.name for path in run.iterdir()} == gone
    assert (run / "corpus" / "out.txt").is_file() and (run / "tokens.partial" / "mine.txt").is_file()
    assert "nothing to remove" in CliRunner().invoke(app, ["clean", str(run)]).stdout
    listed = CliRunner().invoke(app, ["runs", str(run.parent)]).stdout
    assert str(run) in listed and "2/" in listed


def test_nothing_is_removed_while_somebody_works_there(run: Path) -> None:
    found = leftovers(run)
    with locked(run), pytest.raises(ConfigError, match="another process works"):
        remove(run, found)
    assert measure(run).state != "running"
    (run / "train.superseded-1" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="is not what it was"):
        remove(run, [item for item in found if item.kind == "superseded"])
    assert (run / "train.superseded-1" / "out.txt").is_file()


def test_runs_are_found_below_folders_but_not_in_runs(tmp_path: Path) -> None:
    for name in ("a", "study/t1", "study/t2", "a/corpus/b"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.yaml").write_text("name: x\n")
    assert find_runs(tmp_path) == [tmp_path / name for name in ("a", "study/t1", "study/t2")]
    with pytest.raises(ConfigError, match="no such folder"):
        find_runs(tmp_path / "nowhere")
