"""Reading shards, ``.jsonl.zst`` files, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tsugiki.experiment.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK_BYTES = 1 << 20


class TruncatedInput(Exception):
    """A compressed stream ends before its end mark, or is corrupt."""


class Unpacked(io.RawIOBase):
    """Unpacked bytes; damage is reported one read after the last good bytes.

    A buffered reader that is interrupted by an error loses what it had gathered, so the first
    read that meets damage says "end of file" and the next one raises.
    """

    def __init__(self) -> None:
        self._ready = memoryview(b"")
        self._damage: TruncatedInput | None = None
        self._ended = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer; 0 at the end.

        Raises:
            TruncatedInput: the end that was just reported is a damaged place.
        """
        self.check()
        while not self._ready and not self._ended:
            try:
                data = self._next()
            except TruncatedInput as error:
                self._damage = error
                return 0
            if data is None:
                self._ended = True
            else:
                self._ready = memoryview(data)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def check(self) -> None:
        """Raise if damage was met.

        Raises:
            TruncatedInput: what was wrong.
        """
        if self._damage is not None:
            raise self._damage

    def _next(self) -> bytes | None:
        """More bytes, maybe none yet; None at the end."""
        raise NotImplementedError


class ZstdStream(Unpacked):
    """Decompresses zstandard frames one after another.

    zstandard's own ``stream_reader`` takes a truncated frame for the end of the file; a corpus
    would become shorter without a word.

    Args:
        raw: compressed bytes.
    """

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        super().__init__()
        self._raw = raw
        self._zstd = zstandard
        self._frame = self._fresh_frame()
        self._fresh = True  # nothing of the current frame was fed yet

    def _fresh_frame(self) -> Any:
        # 2 GB is what `zstd --long=31` writes; memory is taken as the frame's own header asks.
        return self._zstd.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def _next(self) -> bytes | None:
        rest = b""
        if self._frame.eof:
            rest = self._frame.unused_data
            self._frame = self._fresh_frame()
            self._fresh = True
        data = rest or self._raw.read(_CHUNK_BYTES)
        if not data:
            if self._fresh:
                return None
            raise TruncatedInput("the file ends within a zstandard frame")
        self._fresh = False
        try:
            return self._frame.decompress(data)
        except self._zstd.ZstdError as error:
            raise TruncatedInput(f"zstandard: {error}") from error


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the records of a shard.

    Raises:
        DataError: the file is missing, empty, truncated or not JSON lines. A shard without records is no file, so an
            empty one is a truncated one.
    """
    import orjson

    number = 1
    try:
        with path.open("rb") as raw:
            unpacked = ZstdStream(raw)
            for line in io.BufferedReader(unpacked, _CHUNK_BYTES):
                if not line.endswith(b"\n"):
                    unpacked.check()  # a line that damage has cut is not a line
                yield orjson.loads(line)
                number += 1
            unpacked.check()
            if raw.tell() == 0:
                raise TruncatedInput("the file is empty")
    except (OSError, TruncatedInput, ValueError) as error:
        raise DataError("unreadable shard", where=f"{path}, line {number}", got=error) from error
