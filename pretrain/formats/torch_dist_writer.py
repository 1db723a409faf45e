"""Writes Megatron distributed checkpoints (``torch_dist``) without a process group.

Tensors are global and layers stacked, as GPTModel saves them, so a checkpoint loads under any
parallel layout. See :mod:`tsugiki.pretrain.formats.torch_dist_reader` for the format.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from tsugiki.pretrain.formats.byte_ranges import FilePool, bytes_of
from tsugiki.pretrain.formats.torch_dist_metadata import METADATA_NAME
from tsugiki.pretrain.formats.torch_dist_reader import CONFIG_NAME, Chunk, metadata_index

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Slot:
    """Where a chunk of a checkpoint being written goes."""

    chunk: Chunk
    file: Path
    data_position: int
    prefix: bytes
    suffix: bytes


class DistWriter:
    """A ``torch_dist`` checkpoint whose layout is fixed before any data is written.

    Chunks are announced with :meth:`add`; entering the context creates the files with everything
    but the data, which may then be written in any order, by several threads.

    Args:
        directory: of the checkpoint; exists.
        file_bytes: a new data file is begun when one has reached this size.
        laid_out: an interrupted attempt has created the files already; they are not touched until data comes.
    """

    def __init__(self, directory: Path, file_bytes: int, *, laid_out: bool = False) -> None:
        self.directory = directory
        self._laid_out = laid_out
        self._file_bytes = file_bytes
        self._file = 0
        self._position = 0
        self._sizes: dict[Path, int] = {}
        self._slots: list[tuple[str, torch.dtype, Slot]] = []
        self._objects: list[tuple[str, Chunk, bytes]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pool = FilePool(writable=True)

    def _place(self, length: int) -> tuple[str, int]:
        if self._position and self._position + length > self._file_bytes:
            self._file, self._position = self._file + 1, 0
        name, start = f"__0_{self._file}.distcp", self._position
        self._position += length
        self._sizes[self.directory / name] = self._position
        return name, start

    def add(
        self,
        key: str,
        global_shape: tuple[int, ...],
        offsets: tuple[int, ...],
        sizes: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Slot:
        """Announce a chunk of a global tensor."""
        prefix, suffix = _envelope(sizes, dtype)
        length = len(prefix) + math.prod(sizes) * dtype.itemsize + len(suffix)
        name, start = self._place(length)
        chunk = Chunk(offsets, sizes, name, start, length)
        slot = Slot(chunk, self.directory / name, start + len(prefix), prefix, suffix)
        self._slots.append((key, dtype, slot))
        self._shapes[key] = global_shape
        return slot

    def add_object(self, key: str, value: object) -> None:
        """Announce an object."""
        import torch

        stream = io.BytesIO()
        torch.save(value, stream)
        name, start = self._place(len(stream.getvalue()))
        self._objects.append((key, Chunk((), (), name, start, len(stream.getvalue())), stream.getvalue()))

    def __enter__(self) -> DistWriter:
        if self._laid_out:
            return self
        for path, size in self._sizes.items():
            os.ftruncate(self._pool.descriptor(path), size)
        for _, _, slot in self._slots:
            self._pool.write(slot.file, slot.chunk.position, slot.prefix)
            end = slot.chunk.position + slot.chunk.length
            self._pool.write(slot.file, end - len(slot.suffix), slot.suffix)
        for _, chunk, data in self._objects:
            self._pool.write(self.directory / chunk.file, chunk.position, data)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def total_bytes(self) -> int:
        """Size of all data files."""
        return sum(self._sizes.values())

    def descriptor(self, slot: Slot) -> int:
        """Descriptor of the file of a chunk, whose data begins at ``slot.data_position``."""
        return self._pool.descriptor(slot.file)

    def write(self, slot: Slot, tensor: torch.Tensor, row: int = 0) -> None:
        """Write rows of a chunk, counted within it on its last axis but one (or only axis)."""
        row_bytes = tensor[0].nbytes
        self._pool.write(slot.file, slot.data_position + row * row_bytes, bytes_of(tensor.contiguous()))

    def write_metadata(self) -> None:
        """Write ``.metadata``, ``common.pt`` and, last, ``metadata.json``, which marks it whole.

        megatron-core up to 0.18 reads ``common.pt``; later versions accept it in place of their own
        common state object.
        """
        import torch
        from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
        from torch.distributed.checkpoint.metadata import (
            BytesStorageMetadata,
            ChunkStorageMetadata,
            Metadata,
            StorageMeta,
            TensorProperties,
            TensorStorageMetadata,
        )

        described: dict[str, Any] = {}
        storage: dict[Any, Any] = {}
        for key, dtype, slot in self._slots:
            chunk = slot.chunk
            if key not in described:
                shape = torch.Size(self._shapes[key])
                described[key] = TensorStorageMetadata(TensorProperties(dtype=dtype), shape, [])
            block = ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
            described[key].chunks.append(block)
            info = _StorageInfo(chunk.file, chunk.position, chunk.length)
            storage[metadata_index(key, chunk.offsets)] = info
        for key, chunk, _ in self._objects:
            described[key] = BytesStorageMetadata()
            info = _StorageInfo(chunk.file, chunk.position, chunk.length)
            storage[metadata_index(key, None)] = info
        metadata = Metadata(described, None, storage, StorageMeta(), CURRENT_DCP_VERSION)
        with (self.directory / METADATA_NAME).open("wb") as stream:
            pickle.dump(metadata, stream)
        torch.save({}, self.directory / "common.pt")
        config = {
            "sharded_backend": "torch_dist",
            "sharded_backend_version": 1,
            "common_backend": "torch",
            "common_backend_version": 1,
        }
        (self.directory / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")


@cache
def _envelope(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[bytes, bytes]:
    """What ``torch.save`` of such a tensor writes before and after the data.

    The zip entry of the data gets the checksum 0, as with ``torch.serialization.skip_data``, whose
    way of saving this is: PyTorch does not check it.
    """
    import torch

    recorder = _Recorder()
    with torch.serialization.skip_data():
        torch.save(torch.empty(sizes, dtype=dtype), cast("IO[bytes]", recorder))
    before, gap, after = bytearray(), 0, bytearray()
    position = 0
    for start, data in recorder.parts:
        if start != position:
            gap += start - position
        (after if gap else before).extend(data)
        position = start + len(data)
    assert gap == math.prod(sizes) * dtype.itemsize
    return bytes(before), bytes(after)


class _Recorder:
    """A file that keeps what is written where, and nothing for what is skipped."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, bytes]] = []
        self._position = 0

    def write(self, data: Any) -> int:
        self.parts.append((self._position, bytes(data)))
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset if whence == os.SEEK_SET else self._position + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        pass
