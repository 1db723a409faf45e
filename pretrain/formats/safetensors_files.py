"""Hugging Face weight files, read and written by byte range.

A safetensors file is ``<u64 header length><JSON header><data>``; the header gives dtype, shape and
``data_offsets`` (relative to the data) of every tensor. Reading with ``pread`` instead of mapping
the file keeps the resident memory at what is asked for, and the positions are known before
anything is written, so tensors can be written in any order and in parallel.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.files import write_json_atomically
from tsugiki.pretrain.formats.byte_ranges import FilePool, bytes_of
from tsugiki.pretrain.formats.hf_tensor import ITEM_BYTES, HfTensor
from tsugiki.pretrain.formats.pytorch_bin import LEGACY_INDEX_NAME, LEGACY_NAME, legacy_tensors

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_HEADER_LIMIT_BYTES = 100_000_000
_MOST_DIMENSIONS = 16
_SHOWN_CHARACTERS = 200
DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""Our dtype names -> safetensors'."""


def torch_dtype(name: str) -> torch.dtype:
    """Torch type of a safetensors type name or of one of ours.

    Raises:
        CheckpointError: not a floating type weights come in.
    """
    import torch

    known = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    try:
        return known[DTYPES.get(name, name)]
    except KeyError:
        raise CheckpointError(
            "unsupported weight type", got=name, expected=f"one of {', '.join(DTYPES)}"
        ) from None


def dtype_name(dtype: torch.dtype) -> str:
    """Our name (bf16, fp16, fp32) of a torch type."""
    import torch

    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def safetensors_header(path: Path) -> dict[str, HfTensor]:
    """Tensors of a safetensors file, in file order, checked against the file's size and against each other.

    Raises:
        CheckpointError: missing, truncated, not a safetensors file, or with tensors that cannot be.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > min(size - 8, _HEADER_LIMIT_BYTES):
                raise ValueError(f"header of {length:,} bytes in a file of {size:,} bytes")
            header = json.loads(stream.read(length), object_pairs_hook=_without_repeated_names)
        if not isinstance(header, dict):
            raise TypeError(f"a {type(header).__name__} as header instead of a mapping")
    except FileNotFoundError:
        raise CheckpointError("missing weight file", where=path) from None
    # Deep nesting is a RecursionError.
    except (OSError, ValueError, TypeError, RecursionError, struct.error) as error:
        raise CheckpointError(
            "not a whole safetensors file", where=path, got=error, fix="download or copy the file again"
        ) from error
    data = 8 + length
    tensors = {
        name: _tensor(name, entry, path, data, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _refuse_overlaps(tensors.values(), path)
    return tensors


def _without_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that comes twice, readers take the one or the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name!r} comes twice")
    return found


def _tensor(name: str, entry: Any, path: Path, data: int, size: int) -> HfTensor:
    """One entry of a header; the data of the file begins at ``data``, and the file has ``size`` bytes."""
    where = f"{path}: {name}"
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        counts = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        lists = isinstance(entry["shape"], list) and len(shape) <= _MOST_DIMENSIONS
        if not counts or not lists or not isinstance(dtype, str):
            raise ValueError("sizes and offsets are whole numbers from 0 on")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "unreadable tensor entry", where=where, got=str(entry)[:_SHOWN_CHARACTERS],
            expected='{"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}',
        ) from error  # fmt: skip
    if dtype not in ITEM_BYTES:
        raise CheckpointError(
            "tensor of an unknown type", where=where, got=dtype, expected=f"one of {', '.join(ITEM_BYTES)}"
        )
    tensor = HfTensor(name, path, dtype, shape, data + begin)
    if tensor.size_bytes != end - begin:
        raise CheckpointError(
            "tensor size contradicts its shape",
            where=where,
            got=f"{end - begin:,} bytes",
            expected=f"{tensor.size_bytes:,} bytes for {dtype} {list(shape)}",
        )
    if data + end > size:
        raise CheckpointError(
            "truncated safetensors file",
            where=f"{where} {list(shape)}",
            got=f"{size:,} bytes",
            expected=f"at least {data + end:,} bytes",
            fix="download or copy the file again",
        )
    return tensor


def _refuse_overlaps(tensors: Iterable[HfTensor], path: Path) -> None:
    """Each byte belongs to one tensor: two that share bytes are one of them misplaced."""
    filled = sorted((item for item in tensors if item.size_bytes), key=lambda item: item.offset)
    for before, after in pairwise(filled):
        if before.offset + before.size_bytes > after.offset:
            raise CheckpointError(
                "tensors overlap in their file",
                where=path,
                got=f"{before.name} ends at byte {before.offset + before.size_bytes:,}, "
                f"{after.name} begins at {after.offset:,}",
                fix="download the file again; if it is the same, do not use this model",
            )


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, both names; the files lie beside the index.

    Raises:
        CheckpointError: the index cannot be read, or names a file elsewhere.
    """
    try:
        loaded = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_without_repeated_names)
        weight_map = loaded["weight_map"]
        if not isinstance(weight_map, dict):
            raise TypeError(f"weight_map is a {type(weight_map).__name__} instead of a mapping")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            "unreadable weight index", where=index, got=f"{type(error).__name__}: {error}",
            expected='{"weight_map": {tensor: file}}', fix="download the file again",
        ) from error  # fmt: skip
    for name, shard in weight_map.items():
        plain = (
            isinstance(shard, str) and shard not in ("", ".", "..") and "/" not in shard and "\0" not in shard
        )
        if not plain:
            raise CheckpointError(
                "the index names a file outside the model's directory", where=f"{index}: {name}",
                got=repr(shard), expected="the name of a file beside the index",
                fix="do not use this model unless you know where it comes from",
            )  # fmt: skip
    return weight_map


class HfReader:
    """The weights of a Hugging Face directory, read lazily.

    Raises:
        CheckpointError: no weights, a missing or truncated shard, an index naming an absent tensor.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tensors: dict[str, HfTensor] = {}
        self._pool = FilePool()
        for index, single, tensors_of in (
            (INDEX_NAME, SINGLE_NAME, safetensors_header),
            (LEGACY_INDEX_NAME, LEGACY_NAME, legacy_tensors),
        ):
            if (directory / index).is_file():
                self._read_index(directory / index, tensors_of)
                return
            if (directory / single).is_file():
                self.tensors = tensors_of(directory / single)
                return
        found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        raise CheckpointError(
            "no weights here",
            where=directory,
            got=", ".join(found[:12]) or "nothing",
            expected=f"{SINGLE_NAME}, or {INDEX_NAME} and its shards, or {LEGACY_NAME}",
        )

    def _read_index(self, index: Path, tensors_of: Callable[[Path], dict[str, HfTensor]]) -> None:
        weight_map = _weight_map(index)
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (self.directory / shard).is_file()]
        if missing:
            raise CheckpointError(
                "missing shard",
                where=index,
                got=f"no {', '.join(missing)}",
                expected=f"{len(shards)} shards",
                fix="download the missing files",
            )
        held = {shard: tensors_of(self.directory / shard) for shard in shards}
        for name, shard in weight_map.items():
            if name not in held[shard]:
                raise CheckpointError(
                    "the index names a tensor that its shard does not hold",
                    where=f"{index}: {name}",
                    got=f"{shard} with {len(held[shard])} tensors",
                )
            self.tensors[name] = held[shard][name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows ``start:stop`` of a tensor (all of it by default), in its own dtype."""
        import torch

        entry = self.tensors[name]
        stop = entry.shape[0] if stop is None else stop
        tensor = torch.empty((stop - start, *entry.shape[1:]), dtype=torch_dtype(entry.dtype))
        self._pool.read_into(entry.file, entry.offset + start * entry.row_bytes, bytes_of(tensor))
        return tensor

    def descriptor(self, name: str) -> int:
        """Descriptor of the file that holds a tensor."""
        return self._pool.descriptor(self.tensors[name].file)

    def close(self) -> None:
        """Close the files."""
        self._pool.close()


class HfWriter:
    """Sharded safetensors with known positions, written in any order.

    Args:
        directory: where the files go.
        tensors: name, shape and dtype (bf16, fp16, fp32) in file order.
        shard_bytes: a file holds at most this much, or one tensor.
        laid_out: an interrupted attempt has created the files already; they are not touched until data comes.
    """

    def __init__(
        self,
        directory: Path,
        tensors: Sequence[tuple[str, tuple[int, ...], str]],
        shard_bytes: int,
        *,
        laid_out: bool = False,
    ) -> None:
        self.directory = directory
        self._laid_out = laid_out
        self._entries: dict[str, HfTensor] = {}
        groups: list[list[HfTensor]] = [[]]
        filled = 0
        for name, shape, dtype in tensors:
            entry = HfTensor(name, Path(), DTYPES[dtype], shape, 0)
            if groups[-1] and filled + entry.size_bytes > shard_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(entry)
            filled += entry.size_bytes
        self.files: list[str] = []
        self._headers: list[tuple[Path, bytes, int]] = []
        for number, group in enumerate(groups, start=1):
            single = len(groups) == 1
            file = SINGLE_NAME if single else f"model-{number:05}-of-{len(groups):05}.safetensors"
            self.files.append(file)
            header, data_bytes = _header(group)
            self._headers.append((directory / file, header, len(header) + data_bytes))
            position = len(header)
            for entry in group:
                self._entries[entry.name] = HfTensor(
                    entry.name, directory / file, entry.dtype, entry.shape, position
                )
                position += entry.size_bytes
        self.total_bytes = sum(entry.size_bytes for entry in self._entries.values())
        self._pool = FilePool(writable=True)

    def __enter__(self) -> HfWriter:
        if self._laid_out:
            return self
        for path, header, size in self._headers:
            os.ftruncate(self._pool.descriptor(path), size)
            self._pool.write(path, 0, header)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def entry(self, name: str) -> HfTensor:
        """Where a tensor goes."""
        return self._entries[name]

    def descriptor(self, name: str) -> int:
        """Descriptor of the file that takes a tensor."""
        return self._pool.descriptor(self._entries[name].file)

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        """Write rows ``start:`` of a tensor, in the announced type.

        Raises:
            CheckpointError: the rows do not fit the announced shape.
        """
        entry = self._entries[name]
        if tensor.shape[1:] != entry.shape[1:] or start + tensor.shape[0] > entry.shape[0]:
            raise CheckpointError(
                "tensor of another shape",
                where=name,
                got=f"{list(tensor.shape)} at row {start}",
                expected=list(entry.shape),
            )
        data = bytes_of(tensor.to(torch_dtype(entry.dtype)).contiguous())
        self._pool.write(entry.file, entry.offset + start * entry.row_bytes, data)

    def write_index(self) -> None:
        """Write the index of a sharded model; a single file needs none."""
        if len(self.files) == 1:
            return
        index = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": {name: entry.file.name for name, entry in sorted(self._entries.items())},
        }
        write_json_atomically(self.directory / INDEX_NAME, index)


def _header(entries: Iterable[HfTensor]) -> tuple[bytes, int]:
    """Length-prefixed header of a file, and the bytes of data behind it."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        end = position + entry.size_bytes
        described[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, position
