"""Which folders among the checkpoints are ours: only those are counted, replaced and removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.checkpoint.store import CheckpointStore
from tsugiki.pretrain.conversion.trained_model import find_checkpoint


class State:
    """A model of one file."""

    def save(self, directory: Path, common: dict[str, Any], *, copy: bool, group: Any) -> Any:
        return lambda: (directory / "__0_0.distcp").write_bytes(b"weights")


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def save(folder: Path, *iterations: int, keep_last: int = 1, keep_every: int | None = None) -> None:
    store = CheckpointStore(folder, keep_last, keep_every)
    for iteration in iterations:
        store.save(iteration, State(), {}, {})  # type: ignore[arg-type]
        store.finish()


def put(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


FOREIGN = [
    "iter_0000001.keep", "iter_best", "iter_", "iter_5", "iter_00000005", "iter_-000001", "iter_²", "iter_１２３４５６７",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_folder_with_another_name_is_nobodys_to_remove(folder: Path, name: str) -> None:
    put(folder, f"{name}/checkpoint.json", f"{name}/weights")
    save(folder, 3, 9)
    assert sorted(entry.name for entry in folder.iterdir()) == sorted([name, "iter_0000009", "latest.json"])
    assert (folder / name / "checkpoint.json").is_file() and (folder / name / "weights").is_file()
    assert CheckpointStore(folder, 1, None).iterations() == [9]


def test_file_with_the_name_of_a_checkpoint_stays(folder: Path) -> None:
    put(folder, "iter_0000002")
    save(folder, 3, 9)
    assert (folder / "iter_0000002").is_file()


def test_checkpoint_moved_to_another_disk_stays_there(folder: Path, tmp_path: Path) -> None:
    save(folder, 3)
    (folder / "iter_0000003").rename(tmp_path / "elsewhere")
    (folder / "iter_0000003").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").iterdir())
    save(folder, 9)
    assert sorted((tmp_path / "elsewhere").iterdir()) == before
    assert not (folder / "iter_0000003").is_symlink(), "of a link only the link goes"
    (folder / "iter_0000010").symlink_to(tmp_path / "elsewhere")
    save(folder, 10)
    assert sorted((tmp_path / "elsewhere").iterdir()) == before
    assert json.loads((folder / "latest.json").read_text()) == {"iteration": 10}


def test_checkpoint_that_is_written_anew_loses_its_mark_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 3)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 3)
    assert CheckpointStore(folder, 1, None).iterations() == [], "half of it is not taken for the whole"


def test_folder_that_cannot_be_replaced_is_an_error(folder: Path) -> None:
    put(folder, "iter_0000003")
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint[\s\S]*iter_0000003"):
        save(folder, 3)
    assert (folder / "iter_0000003").read_text() == "{}"


@pytest.mark.parametrize("name", FOREIGN)
def test_export_takes_the_newest_of_ours(folder: Path, name: str) -> None:
    save(folder, 9_999_999, 10_000_000, keep_last=2)
    put(folder, f"{name}/checkpoint.json", "model.json", "hf_config.json")
    spec = "tsugiki.pretrain.conversion.trained_model.ModelSpec.load"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, lambda home: None)
        assert find_checkpoint(folder.parent).iteration == 10_000_000
        assert find_checkpoint(folder, 9_999_999).checkpoint == folder / "iter_9999999"
        with pytest.raises(Exception, match=r"one of 9999999, 10000000"):
            find_checkpoint(folder, 1)
