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
_FED_BYTES = (64, 4096)
"""Least and most given to the zstandard decompressor at a time: it unpacks all of it at once, up to 128 KiB from 4
bytes. Between them as much as gives :data:`_UNPACKED_BYTES`, if the frame goes on as it began."""
_UNPACKED_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 27
"""What ``zstd`` itself allows a frame."""
_MOST_EXPANSION = 100
"""Of frames with a larger window; text compresses 3 to 20 times."""


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
        self._waiting = memoryview(b"")  # read and not yet unpacked
        self._frame = self._fresh_frame()
        self._fresh = True  # nothing of the current frame was fed yet

    def _fresh_frame(self) -> Any:
        # 2 GB is what `zstd --long=31` writes. The memory is reserved as the frame's own header asks and used as far
        # as there is content: see _check_expansion.
        self._packed = self._unpacked = 0
        return self._zstd.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def _next(self) -> bytes | None:
        data = b""
        if self._frame.eof:
            data = self._frame.unused_data
            self._frame = self._fresh_frame()
            self._fresh = True
        if not data:
            self._waiting = self._waiting or memoryview(self._raw.read(_CHUNK_BYTES))
            least, most = _FED_BYTES
            proportional = _UNPACKED_BYTES * self._packed // self._unpacked if self._unpacked else 0
            fed = max(least, min(most, proportional))
            data, self._waiting = bytes(self._waiting[:fed]), self._waiting[fed:]
        if not data:
            if self._fresh:
                return None
            raise TruncatedInput("the file ends within a zstandard frame")
        self._fresh = False
        if self._packed == 0:
            self._window = self._window_of(data)
        try:
            unpacked: bytes = self._frame.decompress(data)
        except self._zstd.ZstdError as error:
            raise TruncatedInput(f"zstandard: {error}") from error
        self._packed += len(data)
        self._unpacked += len(unpacked)
        self._check_expansion()
        return unpacked

    def _window_of(self, data: bytes) -> int:
        """Bytes of history that the frame asks for; the most where the file is cut within its header."""
        try:
            return int(self._zstd.get_frame_parameters(data).window_size)
        except self._zstd.ZstdError:
            return 1 << 31

    def _check_expansion(self) -> None:
        """Refuse a frame that fills a large window from little: what it takes must be in proportion to the file.

        Raises:
            TruncatedInput: it does.
        """
        if self._window > _WINDOW_BYTES and self._unpacked > max(
            _WINDOW_BYTES, _MOST_EXPANSION * self._packed
        ):
            raise TruncatedInput(
                f"zstandard: {self._packed:,} bytes unpack to {self._unpacked:,} and more, "
                f"with a window of {self._window:,}"
            )


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
