"""Shard files: ``.jsonl.zst`` written atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson
from datatrove.data import Document

from tsugiki.experiment.artefacts.shards import read_shard

_LEVEL = 3
_BUFFER_BYTES = 1 << 20


class ShardWriter:
    """Writes documents to a shard; the file appears on a normal exit if it has any.

    Attributes:
        documents: documents written.
        bytes: UTF-8 bytes of their text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = 0
        self.bytes = 0
        self._partial = path.with_name(path.name + ".partial")
        self._stream: Any = None
        self._file: BinaryIO | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def __enter__(self) -> Self:
        return self

    def write(self, identifier: str, text: str, metadata: dict[str, Any]) -> None:
        """Append a record."""
        line = orjson.dumps(
            {"id": identifier, "text": text, "metadata": metadata}, option=orjson.OPT_APPEND_NEWLINE
        )
        self.documents += 1
        self.bytes += len(text.encode())
        self._pending.append(line)
        self._pending_bytes += len(line)
        if self._pending_bytes >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._stream is None:
            import zstandard

            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
            self._stream = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self._file, closefd=False)
        self._stream.write(b"".join(self._pending))
        self._pending, self._pending_bytes = [], 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                self._file.close()
                self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._pending:
            self._flush()
        if self._file is not None:
            self._stream.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(self.path)


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a shard written here; none when the file does not exist (an empty shard).

    Raises:
        DataError: it is truncated.
    """
    if not path.exists():
        return
    for record in read_shard(path):
        yield Document(text=record["text"], id=record["id"], metadata=record["metadata"])
