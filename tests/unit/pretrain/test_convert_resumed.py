"""graft and export inside `tsugiki run`, killed at work: what is finished is kept, and the result is the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversion_graph import MODULES, counted, graph, make_inputs, run
from convert_material import make_model

import tsugiki.experiment.run.graph
from tsugiki.experiment.run.folders import KEY_NAME
from tsugiki.pretrain.conversion.trained_model import find_checkpoint
from tsugiki.pretrain.formats.byte_ranges import copy_range
from tsugiki.pretrain.formats.journal import JOURNAL_NAME, Journal

PROGRAM = Path(__file__).parents[2] / "support" / "conversion_graph.py"
WEIGHTS = {"graft": "checkpoint/*.distcp", "export": "*.safetensors"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def folder(inputs: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(inputs, tmp_path / "here")
    for module in MODULES.values():
        module.copy_range = copy_range


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def states(directory: Path, pattern: str) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.glob(pattern)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["graft", "export"])
def test_a_killed_conversion_goes_on_where_it_was(stage: str, folder: Path) -> None:
    calls = counted(stage, None)
    run(folder, stage)
    expected, copies = contents(folder / "run" / stage), len(calls)
    shutil.rmtree(folder / "run")

    killed = subprocess.run(
        [sys.executable, PROGRAM, folder, stage, str(copies)], check=False, stderr=subprocess.PIPE
    )
    assert killed.returncode == -9, killed.stderr
    partial = folder / "run" / f"{stage}.partial"
    before = states(partial, WEIGHTS[stage])
    assert len(before) > 2
    made = graph(folder)
    assert made.decide(made.stages[stage]).action == "resume"

    calls = counted(stage, None)
    run(folder, stage)
    assert len(calls) == 1, "only what was not finished"
    assert contents(folder / "run" / stage) == expected
    after = states(folder / "run" / stage, WEIGHTS[stage])
    rewritten = [name for name in before if before[name] != after[name]]
    assert len(rewritten) == 1, "files that were finished are left alone"
    assert not partial.exists()


@pytest.mark.parametrize("stage", ["graft", "export"])
def test_a_kill_while_the_result_is_sealed_loses_nothing(
    stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    describe = tsugiki.experiment.run.graph.describe_outputs
    monkeypatch.setattr("tsugiki.experiment.run.graph.describe_outputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, stage)
    monkeypatch.setattr("tsugiki.experiment.run.graph.describe_outputs", describe)
    before = states(folder / "run" / f"{stage}.partial", WEIGHTS[stage])
    calls = counted(stage, None)
    run(folder, stage)
    assert not calls
    assert states(folder / "run" / stage, WEIGHTS[stage]) == before
    assert not list((folder / "run" / stage).glob(".*"))


@pytest.mark.parametrize("stage", ["graft", "export"])
def test_a_changed_input_starts_over(stage: str, folder: Path) -> None:
    calls = counted(stage, 20, kill=False)
    with pytest.raises(KeyboardInterrupt):
        run(folder, stage)
    if stage == "graft":
        from conversion_graph import CASE

        make_model(CASE, folder / "base", seed=1)
    else:
        weights = find_checkpoint(folder / "train").checkpoint / "__0_0.distcp"
        with weights.open("r+b") as stream:
            stream.seek(-4096, 2)
            stream.write(b"\1" * 1024)
    made = graph(folder)
    assert made.decide(made.stages[stage]).action == "run"
    calls = counted(stage, None)
    run(folder, stage)
    resumed, copies = contents(folder / "run" / stage), len(calls)
    shutil.rmtree(folder / "run")
    calls = counted(stage, None)
    run(folder, stage)
    assert copies == len(calls), "nothing of the other input is used"
    assert contents(folder / "run" / stage) == resumed


def test_a_changed_configuration_starts_over(folder: Path) -> None:
    counted("graft", 20, kill=False)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "graft")
    assert (folder / "run" / "graft.partial" / KEY_NAME).is_file()
    made = graph(folder, graft={"init": "weighted"})
    assert made.decide(made.stages["graft"]).action == "run"


def test_a_failed_verification_is_not_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.experiment.errors import CheckpointError

    def failed(*_: object, **__: object) -> None:
        raise CheckpointError("logits differ")

    verified = {"shard_bytes": 1_000_000, "verify": True}
    with monkeypatch.context() as patch:
        patch.setattr("tsugiki.pretrain.conversion.export_hf.verify_export", failed)
        with pytest.raises(CheckpointError, match="logits differ"):
            run(folder, "export", export=verified)
        calls = counted("export", None)
        with pytest.raises(CheckpointError, match="logits differ"):
            run(folder, "export", export=verified)
    assert len(calls) > 20, "all is written again"


def test_the_journal_is_whole_wherever_its_rewriting_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion that goes on writes its journal anew, without the line that the interruption cut."""
    with Journal(tmp_path, {"request": 1}) as journal:
        journal.record("a")
        journal.record("b")
    with (tmp_path / JOURNAL_NAME).open("a") as stream:
        stream.write("cut")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            Journal(tmp_path, {"request": 1})
    with Journal(tmp_path, {"request": 1}) as journal:
        assert journal.done == {"a", "b"}
        journal.record("c")
    with Journal(tmp_path, {"request": 1}) as journal:
        assert journal.done == {"a", "b", "c"}
