"""``--overwrite`` stopped at any point: the earlier output or the new one is in its place, or the next call brings it there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tsugiki.experiment.errors import CheckpointError, ConfigError, TsugikiError
from tsugiki.experiment.run.folders import refuse_other_than
from tsugiki.pretrain.convert import import_checkpoint
from tsugiki.pretrain.formats.journal import Journal

Convert = Callable[..., None]


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Convert:
    """Import a model of one file into ``out``."""
    (tmp_path / "base").mkdir()

    def write(hf_dir: Path, target: Path, *, seed: int, **_: Any) -> dict[str, Any]:
        with Journal(target, {"seed": seed}) as journal:
            for name in ("graft.json", "model.json"):
                (target / name).write_text(str(seed))
                journal.record(name)
            if seed < 0:
                raise CheckpointError("the base is damaged")
        return {}

    monkeypatch.setattr("tsugiki.pretrain.conversion.import_hf.write_import", write)

    def run(seed: int, *, overwrite: bool = True) -> None:
        import_checkpoint(tmp_path / "base", tmp_path / "out", seed=seed, overwrite=overwrite)

    return run


def stop_at(point: str, how: Callable[[], None]) -> None:
    """From now on the swap stops before a rename, or before what was replaced is removed."""
    rename, rmtree, calls = Path.rename, shutil.rmtree, []

    def renamed(self: Path, target: Path) -> Path:
        calls.append(self)
        if point in ("first", "second") and len(calls) == ("first", "second").index(point) + 1:
            how()
        return rename(self, target)

    def removed(path: Path, *arguments: Any, **options: Any) -> None:
        if point == "removal" and calls:
            how()
        rmtree(path, *arguments, **options)

    Path.rename = renamed  # type: ignore[method-assign,assignment]
    shutil.rmtree = removed  # type: ignore[assignment]


def killed(convert: Convert, point: str) -> None:
    """The conversion in a process of its own that ends at the point as by ``kill -9``."""
    child = os.fork()
    if child == 0:
        stop_at(point, lambda: os._exit(9))
        convert(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def refused(convert: Convert, point: str) -> None:
    """The file system refuses."""

    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", Path.rename)
        patch.setattr(shutil, "rmtree", shutil.rmtree)
        stop_at(point, refuse)
        with pytest.raises(TsugikiError, match="Permission denied"):
            convert(2)


def state(tmp_path: Path) -> dict[str, str]:
    return {
        path.relative_to(tmp_path).parent.as_posix(): path.read_text()
        for path in tmp_path.rglob("graft.json")
    }


@pytest.mark.parametrize("point", ["first", "second", "removal"])
@pytest.mark.parametrize("stop", [killed, refused])
@pytest.mark.parametrize("then", ["same", "other", "failing", "not asked"])
def test_swap_that_stops(tmp_path: Path, convert: Convert, point: str, stop: Any, then: str) -> None:
    convert(1)
    (tmp_path / "out" / "mine").write_text("only copy")
    stop(convert, point)
    found = state(tmp_path)
    if point == "removal":
        assert found["out"] == "2", "the new one is in its place"
    else:
        assert "1" in found.values(), "the earlier one is somewhere"
        if stop is refused:
            assert found["out"] == "1", "and in its place, where the process lived to bring it back"
    if then in ("same", "other"):
        convert(2 if then == "same" else 3)
        assert state(tmp_path) == {"out": "2" if then == "same" else "3"}
        assert not (tmp_path / "out" / ".work").exists() and not (tmp_path / "out.partial").exists()
        return
    with pytest.raises((CheckpointError, ConfigError), match=r"is damaged|not empty"):
        convert(-1, overwrite=then == "failing")
    assert state(tmp_path)["out"] == ("2" if point == "removal" else "1")
    assert point == "removal" or (tmp_path / "out" / "mine").read_text() == "only copy"


def test_both_are_kept_where_another_took_the_place(tmp_path: Path, convert: Convert) -> None:
    convert(1)
    killed(convert, "second")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("theirs")
    (tmp_path / "out" / "model.safetensors").write_text("theirs")
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"an earlier output[\s\S]*replaced[\s\S]*fix:"):
            convert(2)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mark", ["manifest.json", ".key.json"])
def test_folder_of_a_stage_is_not_replaced(tmp_path: Path, convert: Convert, mark: str) -> None:
    convert(1)
    (tmp_path / "out" / mark).write_text("{}")
    with pytest.raises(ConfigError, match=rf"is the folder of a stage[\s\S]*{mark}"):
        convert(2)
    assert state(tmp_path) == {"out": "1"}


@pytest.mark.parametrize("stop", ["killed", "refused"])
def test_extended_tokenizer_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    from tsugiki import vocabulary

    for name in ("base", "text", "out"):
        (tmp_path / name).mkdir()
    for name in ("pieces.tsv", "tokenizer.json"):
        (tmp_path / "out" / name).write_text("1")

    def write(config: Any, inputs: Any, target: Path, context: Any) -> None:
        for name in ("pieces.tsv", "tokenizer.json"):
            (target / name).write_text("2")

    monkeypatch.setattr("tsugiki.tokenizer.extend.run", write)
    monkeypatch.setattr(vocabulary.VocabularyReport, "load", lambda output: None)
    monkeypatch.setattr(vocabulary, "_languages_of", lambda corpus: ["th"])

    def extend(_: int = 0) -> None:
        vocabulary.extend_tokenizer(tmp_path / "base", tmp_path / "text", tmp_path / "out", overwrite=True)

    if stop == "killed":
        killed(extend, "second")
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr("tsugiki.tokenizer.extend.run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extend()
        monkeypatch.setattr("tsugiki.tokenizer.extend.run", write)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rename", Path.rename)
            patch.setattr(shutil, "rmtree", shutil.rmtree)
            stop_at("second", lambda: Path("nowhere").rename("nothing"))
            with pytest.raises(OSError, match="nowhere"):
                extend()
    assert (tmp_path / "out" / "pieces.tsv").read_text() == "1"
    refuse_other_than(tmp_path / "out", "an extended tokenizer", ["pieces.tsv tokenizer*"])
    killed(extend, "removal")
    extend()
    assert (tmp_path / "out" / "pieces.tsv").read_text() == "2"
    assert len([entry for entry in tmp_path.iterdir() if "replaced" in entry.name]) == 0
