"""Files of one document."""

from __future__ import annotations

from collections.abc import Callable

from tsugiki.data.common.charset import UndecodableInput
from tsugiki.data.common.shard import InputFile
from tsugiki.data.common.streams import open_stream, read_limited
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers.base import BadRecord, Records, new_document


def read_whole(source: SourceConfig, file: InputFile, decode: Callable[[bytes], str]) -> Records:
    """A file as one document; one without text is none.

    Args:
        source: the source.
        file: the file.
        decode: text of its bytes.
    """
    limit = source.reader.maximum_document_bytes
    with open_stream(file.path) as stream:
        data = read_limited(stream, limit)
    if data is None:
        detail = f"more than {limit:,} bytes"
        yield 1, BadRecord("read.oversized", file.name, detail, size_bytes=file.size_bytes)
        return
    try:
        text = decode(data)
    except UndecodableInput as error:
        yield 1, BadRecord("read.undecodable", file.name, str(error), repr(data[:200]), len(data))
        return
    if text.strip():
        yield 1, new_document(source, f"{source.name}/{file.name}", text, len(data), file=file.name)
