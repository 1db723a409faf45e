"""A downloaded checkpoint runs none of its code, and points at nothing outside itself."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_material import CASES, make_model
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as MEMORY_FORMAT
from torch.distributed.checkpoint.metadata import Metadata

from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint, verify_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig
from tsugiki.pretrain.formats.torch_dist_metadata import check_before_loading, read_metadata
from tsugiki.pretrain.formats.torch_dist_reader import DistReader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_model(CASES[0], folder / "base")
    import_checkpoint(folder / "base", folder / "megatron")
    return folder


@pytest.fixture
def megatron(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "megatron", tmp_path / "megatron"))


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def metadata_of(checkpoint: Path) -> Metadata:
    loaded: Metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    return loaded


def put(checkpoint: Path, metadata: object) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def test_the_code_in_the_metadata_does_not_run(made: Path, megatron: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    metadata = metadata_of(megatron / "checkpoint")
    metadata.planner_data = Code(mark)
    put(megatron / "checkpoint", metadata)
    for attempt in (
        lambda: DistReader(megatron / "checkpoint"),
        lambda: check_before_loading(megatron / "checkpoint"),
        lambda: verify_checkpoint(made / "base", megatron, logits=False),
        lambda: export_checkpoint(megatron, tmp_path / "hf", config=ExportConfig(verify=False)),
    ):
        with pytest.raises(CheckpointError, match=r"unreadable checkpoint metadata(.|\n)*mkdir"):
            attempt()
    assert not mark.exists() and not (tmp_path / "hf").exists()
    pickle.loads((megatron / "checkpoint" / ".metadata").read_bytes())
    assert mark.exists()  # the plain unpickler would have run it


@pytest.mark.parametrize(
    "module, name", [("builtins", "eval"), ("torch", "load"), ("torch", "serialization.os.system")]
)
def test_no_other_name_is_found(megatron: Path, module: str, name: str) -> None:
    opcodes = (
        b"\x80\x04"
        + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
        + b"\x93."
    )
    (megatron / "checkpoint" / ".metadata").write_bytes(opcodes)
    with pytest.raises(CheckpointError, match=f"{module}.{name}"):
        read_metadata(megatron / "checkpoint")


class ByAttribute(pickle.Pickler):
    """Pickles an Enum's member as Python 3.11.0 to 3.11.3 do: ``getattr(class, name)``."""

    given: tuple[Any, str] | None = None

    def reducer_override(self, value: Any) -> Any:
        return (
            (getattr, self.given or (type(value), value.name)) if isinstance(value, Enum) else NotImplemented
        )


def put_by_attribute(checkpoint: Path, given: tuple[Any, str] | None = None) -> None:
    stream = io.BytesIO()
    pickler = ByAttribute(stream)
    pickler.given = given
    pickler.dump(metadata_of(checkpoint))
    (checkpoint / ".metadata").write_bytes(stream.getvalue())


def test_metadata_written_by_early_releases_of_python_311(megatron: Path) -> None:
    """Debian 12 has 3.11.2."""
    checkpoint = megatron / "checkpoint"
    expected = metadata_of(checkpoint)
    put_by_attribute(checkpoint)
    assert b"getattr" in (checkpoint / ".metadata").read_bytes()
    assert read_metadata(checkpoint).state_dict_metadata == expected.state_dict_metadata


@pytest.mark.parametrize(
    "given", [(Metadata, "__init__"), (torch.Size, "__reduce__"), (MEMORY_FORMAT, "__class__")]
)
def test_no_other_attribute_is_found(megatron: Path, given: tuple[Any, str]) -> None:
    put_by_attribute(megatron / "checkpoint", given)
    with pytest.raises(CheckpointError, match="unreadable checkpoint metadata"):
        read_metadata(megatron / "checkpoint")


@pytest.mark.parametrize("name", ["common.pt", "object"])
def test_code_in_an_object_does_not_reach_megatron(megatron: Path, tmp_path: Path, name: str) -> None:
    checkpoint, mark = megatron / "checkpoint", tmp_path / "ran"
    check_before_loading(checkpoint)
    if name == "common.pt":
        torch.save({"args": Code(mark)}, checkpoint / name)
    else:
        metadata = metadata_of(checkpoint)
        index = next(index for index in metadata.storage_data if "_extra_state" in index.fqn)
        stream = io.BytesIO()
        torch.save([Code(mark)], stream)
        (checkpoint / "added.distcp").write_bytes(stream.getvalue())
        metadata.storage_data[index].relative_path = "added.distcp"
        metadata.storage_data[index].offset = 0
        metadata.storage_data[index].length = len(stream.getvalue())
        put(checkpoint, metadata)
    with pytest.raises(CheckpointError, match="would run code"):
        check_before_loading(checkpoint)
    assert not mark.exists()


def test_objects_of_transformer_engine_are_accepted(megatron: Path) -> None:
    torch.save(
        {"state": io.BytesIO(b"scale"), "step": torch.tensor(1)}, megatron / "checkpoint" / "common.pt"
    )
    check_before_loading(megatron / "checkpoint")


def test_training_checks_a_checkpoint_before_megatron_reads_it(megatron: Path, tmp_path: Path) -> None:
    from tsugiki.pretrain.checkpoint.state import TrainingState

    metadata = metadata_of(megatron / "checkpoint")
    metadata.planner_data = Code(tmp_path / "ran")
    put(megatron / "checkpoint", metadata)
    with pytest.raises(CheckpointError, match="unreadable checkpoint metadata"):
        TrainingState([], None, 97).load(megatron / "checkpoint")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["../outside", "/etc/hostname", "a/../../b"])
def test_a_file_outside_the_checkpoint_is_not_read(megatron: Path, file: str) -> None:
    metadata = metadata_of(megatron / "checkpoint")
    next(iter(metadata.storage_data.values())).relative_path = file
    put(megatron / "checkpoint", metadata)
    with pytest.raises(CheckpointError, match="a file of the checkpoint"):
        DistReader(megatron / "checkpoint")


def test_metadata_that_cannot_be(megatron: Path) -> None:
    checkpoint = megatron / "checkpoint"
    for damage in ("size", "offset", "chunk", "type", "other", "cut"):
        metadata = metadata_of(made_of := shutil.copytree(checkpoint, checkpoint.parent / damage))
        entry = next(item for item in metadata.state_dict_metadata.values() if hasattr(item, "chunks"))
        if damage == "size":
            entry.size = torch.Size([1])
        elif damage == "offset":
            next(iter(metadata.storage_data.values())).offset = -1
        elif damage == "chunk":
            entry.chunks[0] = None
        elif damage == "type":
            metadata.storage_data = {"name": 5}
        put(made_of, [1] if damage == "other" else metadata)
        if damage == "cut":
            (made_of / ".metadata").write_bytes((checkpoint / ".metadata").read_bytes()[:-40])
        with pytest.raises(CheckpointError, match="metadata"):
            DistReader(made_of)
