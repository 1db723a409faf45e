"""Byte streams of input files: local or fsspec, unpacked by their ending, truncation noticed."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from tsugiki.experiment.artefacts.shards import TruncatedInput, Unpacked, ZstdStream

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK_BYTES = 1 << 20
_XZ_MEMORY_BYTES = 1 << 27
"""For unpacking; `xz -9` needs half of it."""


class _XzStream(Unpacked):
    """Unpacks xz and lzma streams one after another, within bounded memory: a dictionary may ask for 4 GB.

    Args:
        raw: compressed bytes.
    """

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw = raw
        self._packed = b""
        self._decompressor: lzma.LZMADecompressor | None = None

    def _next(self) -> bytes | None:
        if self._decompressor is None:
            packed = self._packed or self._raw.read(_CHUNK_BYTES)
            if not packed:
                return None
            self._packed = packed.lstrip(b"\0")  # padding between streams
            if not self._packed:
                return b""
            self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
        elif self._decompressor.needs_input:
            self._packed = self._raw.read(_CHUNK_BYTES)
            if not self._packed:
                raise TruncatedInput("xz: ended before the end of its stream")
        try:
            data = self._decompressor.decompress(self._packed, max_length=_CHUNK_BYTES)
        except lzma.LZMAError as error:
            raise TruncatedInput(f"xz, with at most {_XZ_MEMORY_BYTES:,} bytes of memory: {error}") from error
        self._packed = b""
        if self._decompressor.eof:
            self._packed, self._decompressor = self._decompressor.unused_data, None
        return data


class _CheckedStream(Unpacked):
    """Turns the errors of the standard decompressors into :class:`TruncatedInput`."""

    def __init__(self, inner: io.BufferedIOBase, kind: str) -> None:
        super().__init__()
        self._inner = inner
        self._kind = kind

    def _next(self) -> bytes | None:
        try:
            # read1, not read: what comes before the damage must not be lost with it.
            return self._inner.read1(_CHUNK_BYTES) or None
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
            raise TruncatedInput(f"{self._kind}: {error}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise TruncatedInput(f"{self._kind}: {error}") from error  # bz2 raises a bare OSError


@contextmanager
def open_stream(path: str, *, unpack: bool = True) -> Iterator[BinaryIO]:
    """Open a file or URL for reading bytes; ``.gz .zst .bz2 .xz`` are unpacked.

    Args:
        path: local path or fsspec URL.
        unpack: False gives the bytes as stored.

    Raises:
        OSError: it cannot be opened.
        TruncatedInput: while reading, when the compressed data is cut short or corrupt.
    """
    raw: BinaryIO
    if "://" in path:
        import fsspec

        raw = cast(BinaryIO, fsspec.open(path, "rb").open())
    else:
        if Path(path).exists() and not Path(path).is_file():  # opening a pipe waits for its writer
            raise OSError(errno.EINVAL, "not a regular file", path)
        raw = Path(path).open("rb")  # noqa: SIM115  (closed below)
    kind = path.rsplit(".", 1)[-1].lower() if unpack else ""
    with raw:
        if kind == "zst":
            yield from _checked(ZstdStream(raw))
        elif kind == "gz":
            with gzip.open(raw) as stream:
                yield from _checked(_CheckedStream(stream, "gzip"))
        elif kind == "bz2":
            with bz2.open(raw) as stream:
                yield from _checked(_CheckedStream(stream, "bzip2"))
        elif kind == "xz":
            yield from _checked(_XzStream(raw))
        else:
            yield raw


def _checked(unpacked: Unpacked) -> Iterator[BinaryIO]:
    """The stream, buffered; raises at the end if its reader took damage for the end of the file."""
    yield io.BufferedReader(unpacked, _CHUNK_BYTES)
    unpacked.check()


class _Range(io.RawIOBase):
    def __init__(self, stream: BinaryIO, left: int) -> None:
        super().__init__()
        self._stream, self._left = stream, left

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer with what is left of the range."""
        target = memoryview(buffer).cast("B")
        data = self._stream.read(min(len(target), self._left))
        target[: len(data)] = data
        self._left -= len(data)
        return len(data)


class Chained(io.RawIOBase):
    """Bytes that were read already, then the rest of their stream."""

    def __init__(self, data: bytes, stream: BinaryIO) -> None:
        super().__init__()
        self._data, self._stream = io.BytesIO(data), stream

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer from the bytes, or from the stream when they are used up."""
        target = memoryview(buffer).cast("B")
        data = self._data.read(len(target)) or self._stream.read(len(target))
        target[: len(data)] = data
        return len(data)


def byte_range(stream: BinaryIO, start: int, end: int) -> BinaryIO:
    """The bytes from ``start`` up to ``end`` of a stream that can seek."""
    stream.seek(start)
    return io.BufferedReader(_Range(stream, end - start), _CHUNK_BYTES)


def read_lines(stream: BinaryIO, maximum_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their number from 1, without the line end; None for a line that is too long.

    A line that is too long is skipped in pieces, so memory stays below ``maximum_bytes``. A line cut
    by damage to the file is not a line: the damage is raised instead.
    """
    number = 0
    while line := stream.readline(maximum_bytes + 1):
        number += 1
        if line.endswith(b"\n"):
            yield number, line.rstrip(b"\r\n")
        elif len(line) > maximum_bytes:
            while (piece := stream.readline(_CHUNK_BYTES)) and not piece.endswith(b"\n"):
                pass
            yield number, None
        elif not stream.readline(1):  # raises if this is not the real end
            yield number, line


def read_limited(stream: BinaryIO, maximum_bytes: int) -> bytes | None:
    """The whole stream, or None when it is longer than ``maximum_bytes``."""
    data = stream.read(maximum_bytes + 1)
    if len(data) > maximum_bytes:
        return None
    stream.read(1)  # raises if this is not the real end
    return data
