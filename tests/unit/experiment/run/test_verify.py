"""Damage of equal size is found: files of stages, checkpoints, manifests, large inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from toy_stages import ToyConfig
from typer.testing import CliRunner

from tsugiki.cli.main import app
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.files import sha256_file
from tsugiki.experiment.run import digest
from tsugiki.experiment.run.digest import ExternalDigests
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage import StageContext
from tsugiki.results import Run


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    run_dir = tmp_path / "runs" / "x"
    stages = [
        Stage("corpus", ToyConfig(text="a"), (), "toy_stages:write"),
        Stage("tokens", ToyConfig(text="b"), ("corpus",), "toy_stages:write"),
    ]
    graph = Graph(stages, run_dir, StageContext(workers=1), None, lambda line: None)
    graph.run(stages, ToyConfig())
    (run_dir / "config.yaml").write_text("name: x\n")
    return graph


def flip(path: Path) -> None:
    """Change a bit in the middle, and nothing else that can be seen."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shard = folder / "__0_0.distcp"
    shard.write_bytes(bytes(1000))
    files = {shard.name: {"bytes": 1000, "sha256": sha256_file(shard)}}
    (folder / "checkpoint.json").write_text(json.dumps({"files": files}))
    return shard


def test_an_intact_run(graph: Graph) -> None:
    checkpoint(graph.run_dir / "train.partial" / "checkpoints" / "iter_0000008")
    found = Run(graph.run_dir).verify()
    assert found.intact and found.damaged == ()
    assert found.verified == (
        "corpus/manifest.json", "tokens/manifest.json",
        "train.partial/checkpoints/iter_0000008/checkpoint.json",
    )  # fmt: skip
    sizes = [path.stat().st_size for path in graph.run_dir.glob("*/**/*") if path.is_file()]
    records = [(graph.run_dir / name).stat().st_size for name in found.verified]
    assert (found.files, found.bytes) == (len(sizes) - len(records), sum(sizes) - sum(records))


def test_a_flipped_bit_is_found(graph: Graph) -> None:
    shard = checkpoint(graph.run_dir / "train.partial" / "checkpoints" / "iter_0000008")
    flip(shard)
    flip(graph.run_dir / "tokens" / "out.txt")
    assert graph.complete("tokens") is not None, "a look at sizes does not find it"
    (graph.run_dir / "corpus" / "out.txt").unlink()

    answer = CliRunner().invoke(app, ["verify", str(graph.run_dir), "--json"])
    assert answer.exit_code == 1
    found = json.loads(answer.stdout)
    assert not found["intact"]
    assert {item["file"]: item["problem"].split()[0] for item in found["damaged"]} == {
        "corpus/out.txt": "missing",
        "tokens/out.txt": "sha256",
        "train.partial/checkpoints/iter_0000008/__0_0.distcp": "sha256",
    }
    text = CliRunner().invoke(app, ["verify", str(graph.run_dir)]).stdout
    assert "damaged: tokens/out.txt: sha256" in text and "3 damaged" in text
    assert "verify: " in CliRunner().invoke(app, ["verify", str(graph.run_dir)]).stderr


def test_a_command_that_finds_nothing_ends_with_0(graph: Graph) -> None:
    answer = CliRunner().invoke(app, ["verify", str(graph.run_dir)])
    assert answer.exit_code == 0 and "nothing damaged" in answer.stdout
    with pytest.raises(ConfigError, match="no run here"):
        Run(graph.run_dir.parent).verify()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"files": 3}', '{"files": {"a": {}}}', "[" * 100_000], ids=range(5)
)
def test_an_unreadable_record_is_damage(graph: Graph, text: str) -> None:
    shard = checkpoint(graph.run_dir / "train.partial" / "checkpoints" / "iter_0000008")
    (shard.parent / "checkpoint.json").write_text(text)
    (graph.run_dir / "corpus" / "manifest.json").write_text(text)
    found = Run(graph.run_dir).verify()
    assert [item.file for item in found.damaged] == [
        "corpus/manifest.json", "train.partial/checkpoints/iter_0000008/checkpoint.json",
    ]  # fmt: skip


def test_a_manifest_with_an_edited_list_of_outputs_is_damage(graph: Graph) -> None:
    directory = graph.directory("tokens")
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "outputs": {}}))
    (directory / "out.txt").unlink()
    loaded = Manifest.load(directory)
    assert loaded is not None and "list of outputs" in str(loaded.damage(directory))
    assert [decision.action for decision in graph.preview(list(graph.stages.values()))] == ["skip", "run"]
    assert [item.file for item in Run(graph.run_dir).verify().damaged] == ["tokens/manifest.json"]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file above the limit from which only the ends are read."""
    monkeypatch.setattr(digest, "_SAMPLED_ABOVE_BYTES", 1000)
    monkeypatch.setattr(digest, "_SAMPLE_BYTES", 10)
    path = tmp_path / "crawl.jsonl"
    path.write_bytes(bytes(range(256)) * 8)
    return path


def look(path: Path) -> str:
    return ExternalDigests(path.parent / "digests.json", keep=True).digest([path])


def test_a_small_input_changed_behind_its_times_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    path.write_text("text")
    first = look(path)
    flip(path)
    assert look(path) != first


def test_damage_in_the_middle_of_a_large_input(large: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = look(large)
    os.utime(large)
    assert look(large) == first, "touched: the identity stays, finished runs too"
    assert "was touched" in capfd.readouterr().err
    os.utime(large)
    assert look(large) == first and not capfd.readouterr().err
    flip(large)
    changed = look(large)
    assert changed != first
    assert look(large) == changed


def test_entries_of_earlier_versions_keep_their_identity(large: Path) -> None:
    first = look(large)
    cache = large.parent / "digests.json"
    [(key, entry)] = json.loads(cache.read_text()).items()
    cache.write_text(json.dumps({key: [entry[0], entry[1], entry[4]]}))
    assert look(large) == first
    assert json.loads(cache.read_text()) == {key: entry}
    cache.write_text(json.dumps({key: [entry[0], 0, entry[4]]}))
    assert look(large) == first
