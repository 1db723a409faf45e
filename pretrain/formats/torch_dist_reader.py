"""Megatron distributed checkpoints (``torch_dist``), read without a process group.

The format is torch.distributed.checkpoint's: ``.metadata`` is a pickle that gives, per tensor, the
global shape and the chunks it was saved in, and per chunk a file, an offset and a length;
there lies what ``torch.save`` wrote. Any slice of any tensor can be read whatever parallel layout
saved it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.formats.byte_ranges import FilePool, bytes_of
from tsugiki.pretrain.formats.torch_dist_metadata import METADATA_NAME, read_metadata

if TYPE_CHECKING:
    import torch

# Written last by Megatron and by us: its presence marks a checkpoint.
CONFIG_NAME = "metadata.json"
Bounds = Sequence[tuple[int, int]]
"""(start, stop) per axis of the global tensor."""


@dataclass(frozen=True)
class Chunk:
    """One saved block of a global tensor; ``offsets`` and ``sizes`` per axis of the global tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    position: int
    length: int


@dataclass(frozen=True)
class RawRows:
    """``count`` rows from ``start`` on, ``row_bytes`` each, at ``position`` of a file."""

    file: Path
    position: int
    start: int
    count: int
    row_bytes: int


@dataclass(frozen=True)
class GlobalTensor:
    """A global tensor of the checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[Chunk]


class DistReader:
    """A ``torch_dist`` checkpoint directory, read by slices.

    Raises:
        CheckpointError: not such a checkpoint, or one whose files are missing or cut.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not (directory / METADATA_NAME).is_file() or not (directory / CONFIG_NAME).is_file():
            raise CheckpointError(
                "not a whole Megatron distributed checkpoint",
                where=directory,
                expected=f"{METADATA_NAME} and {CONFIG_NAME}",
            )
        metadata = read_metadata(directory)
        self.tensors: dict[str, GlobalTensor] = {}
        needed: dict[str, int] = {}
        for key, entry in metadata.state_dict_metadata.items():
            if not hasattr(entry, "chunks"):
                continue
            chunks = []
            for chunk in entry.chunks:
                info = metadata.storage_data.get(metadata_index(key, chunk.offsets))
                if info is None:
                    raise CheckpointError(
                        "checkpoint metadata does not say where a chunk lies",
                        where=f"{directory / METADATA_NAME}: {key}",
                        got=f"nothing at {list(chunk.offsets)}",
                    )
                file, end = info.relative_path, info.offset + info.length
                sizes = tuple(chunk.sizes)
                chunks.append(Chunk(tuple(chunk.offsets), sizes, file, info.offset, info.length))
                needed[file] = max(needed.get(file, 0), end)
            self.tensors[key] = GlobalTensor(tuple(entry.size), entry.properties.dtype, chunks)
        for file, length in needed.items():
            path = directory / file
            size = path.stat().st_size if path.is_file() else None
            if size is None or size < length:
                raise CheckpointError(
                    "checkpoint file missing or cut short",
                    where=path,
                    got="no such file" if size is None else f"{size:,} bytes",
                    expected=f"at least {length:,} bytes",
                    fix="use an earlier checkpoint, or copy it again",
                )
        self._pool = FilePool()
        # All files are opened now: a training run may prune this checkpoint while it is being read.
        for file in needed:
            self._pool.descriptor(directory / file)
        self._data_positions: dict[Chunk, int | None] = {}

    def read(self, key: str, bounds: Bounds) -> torch.Tensor:
        """A slice of a global tensor, contiguous, in the type it was saved in.

        Raises:
            CheckpointError: no such tensor, or the saved chunks do not cover the slice.
        """
        import torch

        if key not in self.tensors:
            raise CheckpointError("tensor missing from the checkpoint", where=self.directory, got=f"no {key}")
        tensor = self.tensors[key]
        shape = tuple(stop - start for start, stop in bounds)
        result = torch.empty(shape, dtype=tensor.dtype)
        covered = 0
        for chunk in tensor.chunks:
            region = [
                (max(start, offset), min(stop, offset + size))
                for (start, stop), offset, size in zip(bounds, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(start >= stop for start, stop in region):
                continue
            inside = zip(region, bounds, strict=True)
            into = result[tuple(slice(a - start, b - start) for (a, b), (start, _) in inside)]
            self._read_region(chunk, region, into)
            covered += into.numel()
        if covered != result.numel():
            raise CheckpointError(
                "the checkpoint does not hold this slice exactly once",
                where=f"{self.directory}: {key}",
                got=f"{covered:,} of {result.numel():,} elements of {list(bounds)}",
                expected=f"within {list(tensor.shape)}",
            )
        return result

    def row_ranges(self, key: str, layer: int | None, start: int, stop: int) -> list[RawRows] | None:
        """Rows of a tensor (of one layer of it) as byte ranges of files.

        Returns:
            The ranges in any order, or None when the rows were saved in pieces (a matrix whose
            columns were divided among ranks) and must be read.
        """
        tensor = self.tensors[key]
        ranges: list[RawRows] = []
        lead = 0 if layer is None else 1
        row_bytes = math.prod(tensor.shape[lead + 1 :]) * tensor.dtype.itemsize
        covered = 0
        for chunk in tensor.chunks:
            if layer is not None and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
                continue
            first, last = max(start, chunk.offsets[lead]), min(stop, chunk.offsets[lead] + chunk.sizes[lead])
            if first >= last:
                continue
            if (layer is not None and chunk.sizes[0] != 1) or chunk.sizes[lead + 1 :] != tensor.shape[
                lead + 1 :
            ]:
                return None
            position = self._data_position(chunk)
            if position is None:
                return None
            position += (first - chunk.offsets[lead]) * row_bytes
            path = self.directory / chunk.file
            ranges.append(RawRows(path, position, first, last - first, row_bytes))
            covered += last - first
        return ranges if covered == stop - start else None

    def descriptor(self, path: Path) -> int:
        """Descriptor of one of the checkpoint's files."""
        return self._pool.descriptor(path)

    def _read_region(self, chunk: Chunk, region: Bounds, into: torch.Tensor) -> None:
        """Fill ``into`` (a view of the result) with a region of one chunk."""
        import torch

        local = [(a - offset, b - offset) for (a, b), offset in zip(region, chunk.offsets, strict=True)]
        position = self._data_position(chunk)
        if position is None:
            into.copy_(self._load_chunk(chunk)[tuple(slice(a, b) for a, b in local)])
            return
        # The rows of the first axis that is cut are contiguous in the file; the axes before it
        # have length one there (the stacking axis), or nothing is cut.
        axis = next((i for i, size in enumerate(chunk.sizes) if size > 1), len(chunk.sizes) - 1)
        start, stop = local[axis]
        row = math.prod(chunk.sizes[axis + 1 :])
        behind = zip(local[axis + 1 :], chunk.sizes[axis + 1 :], strict=True)
        whole_rows = all(bounds == (0, size) for bounds, size in behind)
        position += start * row * into.element_size()
        if whole_rows and into.is_contiguous():
            self._pool.read_into(self.directory / chunk.file, position, bytes_of(into))
            return
        rows = torch.empty((stop - start, *chunk.sizes[axis + 1 :]), dtype=into.dtype)
        self._pool.read_into(self.directory / chunk.file, position, bytes_of(rows))
        inner = rows[(slice(None), *(slice(a, b) for a, b in local[axis + 1 :]))]
        into.copy_(inner.reshape(into.shape))

    def _section(self, chunk: Chunk) -> io.BufferedReader:
        descriptor = self._pool.descriptor(self.directory / chunk.file)
        return io.BufferedReader(_Section(descriptor, chunk.position, chunk.length))

    def _load_chunk(self, chunk: Chunk, device: str = "cpu") -> torch.Tensor:
        import torch

        try:
            with self._section(chunk) as section:
                loaded = torch.load(section, map_location=device, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(
                "damaged checkpoint file",
                where=f"{self.directory / chunk.file} at byte {chunk.position:,}",
                got=error,
            ) from error
        if not isinstance(loaded, torch.Tensor) or tuple(loaded.shape) != chunk.sizes:
            raise CheckpointError(
                "checkpoint chunk of another shape",
                where=self.directory / chunk.file,
                got=list(getattr(loaded, "shape", [])),
                expected=list(chunk.sizes),
            )
        return loaded

    def _data_position(self, chunk: Chunk) -> int | None:
        """Offset of a chunk's raw data in its file; None when it does not lie there in C order."""
        if chunk not in self._data_positions:
            described = self._load_chunk(chunk, "meta")
            position: int | None = None
            if described.is_contiguous() and described.storage_offset() == 0:
                with self._section(chunk) as section, zipfile.ZipFile(section) as archive:
                    record = next(item for item in archive.infolist() if item.filename.endswith("/data/0"))
                    if record.file_size == described.numel() * described.element_size():
                        section.seek(record.header_offset)
                        # Local file header of 30 bytes; the last two fields are the lengths of
                        # the name and of the extra field that follow it.
                        name, extra = struct.unpack_from("<HH", section.read(30), 26)
                        position = chunk.position + record.header_offset + 30 + name + extra
            self._data_positions[chunk] = position
        return self._data_positions[chunk]

    def close(self) -> None:
        """Close the files."""
        self._pool.close()


class _Section(io.RawIOBase):
    """A range of an open file as a file of its own."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._start, self._length, self._position = start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._position)]
        count = os.preadv(self._descriptor, [view], self._start + self._position) if len(view) else 0
        self._position += count
        return count


def metadata_index(key: str, offsets: Sequence[int] | None) -> Any:
    """Key of a saved chunk (or of an object, without offsets) in the metadata."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    return MetadataIndex(key, offsets)
