"""``.metadata`` of a distributed checkpoint, read without running what it may hold.

A pickle calls whatever it names. A checkpoint may have been downloaded, so this one may name only the classes that
torch.distributed.checkpoint describes tensors with, and what it says is checked before it is believed. torch and
Megatron read the same file, and the small objects beside the tensors, with the plain unpickler:
:func:`check_before_loading` goes first where they load a checkpoint.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from tsugiki.experiment.errors import CheckpointError

METADATA_NAME = ".metadata"
_COMMON_NAME = "common.pt"
_DCP = "torch.distributed.checkpoint.metadata"
_KNOWN = frozenset(
    {
        *((_DCP, name) for name in (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),  # looks a name up in a table
        ("collections", "OrderedDict"),
        # checkpoint_id: the folder as the writer saw it
        ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"),
        ("pathlib._local", "PosixPath"), ("pathlib._local", "PurePosixPath"),
    }
)  # fmt: skip
"""What a metadata pickle may name, besides the types of tensors (``torch.bfloat16``)."""


class _Unpickler(pickle.Unpickler):
    """An unpickler that finds only :data:`_KNOWN` and the types of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _KNOWN:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no description of tensors needs")


def _memory_format(kind: Any, name: Any) -> Any:
    """What stands for ``getattr``, by which Python 3.11.0 to 3.11.3 pickle an Enum's member: of this Enum alone."""
    from torch.distributed.checkpoint import metadata

    known: Any = metadata._MEM_FORMAT_ENCODING
    if kind is not known or name not in known.__members__:
        raise pickle.UnpicklingError(
            f"it looks up {name!r} in {kind!r}, which no description of tensors needs"
        )
    return known.__members__[str(name)]


def read_metadata(directory: Path) -> Any:
    """The ``torch.distributed.checkpoint.metadata.Metadata`` of a checkpoint, its fields checked.

    Raises:
        CheckpointError: unreadable, naming anything but descriptions of tensors, or pointing outside the directory.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    path = directory / METADATA_NAME
    try:
        with path.open("rb") as stream:
            metadata = _unpickle(stream)
    # A damaged pickle fails in any of the classes it builds: TypeError, IndexError, UnicodeDecodeError, MemoryError …
    except Exception as error:
        raise CheckpointError(
            "unreadable checkpoint metadata",
            where=path,
            got=f"{type(error).__name__}: {error}",
            expected="only descriptions of tensors, as torch.distributed.checkpoint writes them",
            fix="do not use this checkpoint unless you know where it comes from; copy it again if it was damaged",
        ) from error
    if not isinstance(metadata, Metadata):
        raise _wrong(path, f"a pickled {type(metadata).__name__}", "a pickled Metadata")
    try:
        _check(metadata, path)
    except (AttributeError, TypeError, ValueError) as error:
        raise _wrong(path, error, "tensors as torch.distributed.checkpoint describes them") from error
    return metadata


def _unpickle(stream: BinaryIO) -> Any:
    return _Unpickler(stream).load()


def _check(metadata: Any, path: Path) -> None:
    """Sizes and offsets must be counts, files must lie in the checkpoint."""
    import torch

    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(key, str):
            raise _wrong(path, repr(key), "a name")
        if not hasattr(entry, "chunks"):
            continue
        dtype = entry.properties.dtype
        if not _counts(entry.size) or not isinstance(dtype, torch.dtype):
            raise _wrong(f"{path}: {key}", f"{entry.size} of {dtype}", "whole numbers and a type")
        for chunk in entry.chunks:
            ends = [a + b for a, b in zip(chunk.offsets, chunk.sizes, strict=True)]
            fits = _counts(chunk.offsets) and _counts(chunk.sizes) and len(ends) == len(entry.size)
            if not fits or any(end > size for end, size in zip(ends, entry.size, strict=True)):
                raise _wrong(
                    f"{path}: {key}",
                    f"a chunk of {list(chunk.sizes)} at {list(chunk.offsets)}",
                    f"within {list(entry.size)}",
                )
    for index, info in (metadata.storage_data or {}).items():
        if not _counts([info.offset, info.length]):
            got = f"{info.length} bytes at {info.offset}"
            raise _wrong(f"{path}: {index.fqn}", got, "whole numbers")
        file = PurePath(info.relative_path)
        if file.is_absolute() or ".." in file.parts or "\0" in str(file):
            raise _wrong(f"{path}: {index.fqn}", info.relative_path, "a file of the checkpoint")


def _counts(values: Any) -> bool:
    return all(isinstance(value, int) and 0 <= value < 1 << 63 for value in values)


def _wrong(where: object, got: object, expected: object) -> CheckpointError:
    return CheckpointError("checkpoint metadata that cannot be", where=where, got=got, expected=expected)


def check_before_loading(directory: Path) -> None:
    """Refuse a checkpoint whose pickles would run code in torch's and Megatron's readers.

    The tensors are not read: torch loads those with ``weights_only`` itself. The objects are small (1 kB for each
    module of a layer).

    Raises:
        CheckpointError: a pickle of it holds anything but tensors and plain values; or a file is missing or cut.
    """
    metadata = read_metadata(directory)
    try:
        for index, info in (metadata.storage_data or {}).items():
            if not hasattr(metadata.state_dict_metadata.get(index.fqn), "chunks"):
                with (directory / info.relative_path).open("rb") as stream:
                    stream.seek(info.offset)
                    _check_object(io.BytesIO(stream.read(info.length)), f"{stream.name}: {index.fqn}")
        if (directory / _COMMON_NAME).is_file():
            with (directory / _COMMON_NAME).open("rb") as stream:
                _check_object(stream, stream.name)
    except OSError as error:
        raise CheckpointError("cannot read a checkpoint", where=directory, got=error) from error


def _check_object(stream: Any, where: str) -> None:
    import torch

    try:
        # Transformer Engine keeps its state as bytes in a file.
        with torch.serialization.safe_globals([io.BytesIO]):
            torch.load(stream, map_location="cpu", weights_only=True)
    # Damaged archives fail in many ways, and every one of them means: do not load this.
    except Exception as error:
        raise CheckpointError(
            "an object of the checkpoint is damaged, or would run code when it is loaded",
            where=where,
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="tensors and plain values",
            fix="do not use this checkpoint unless you know where it comes from",
        ) from error
