"""``format: text``: plain text, a document a file, a line or a paragraph."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tsugiki.data.common.charset import UndecodableInput, decode_text
from tsugiki.data.common.shard import InputFile
from tsugiki.data.common.streams import Chained, open_stream, read_lines
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import BadRecord, Reader, Records, new_document
from tsugiki.data.readers.lines import divided_lines, lines_of
from tsugiki.data.readers.whole import read_whole

if TYPE_CHECKING:
    from datatrove.data import Document


@READERS.register("text")
class TextReader(Reader):
    """Plain text, divided into documents as ``reader.documents`` says."""

    def read(self, source: SourceConfig, file: InputFile) -> Records:
        """Documents of the file."""
        if source.reader.documents == "line":
            return lines_of(source, file, _text_line)
        if source.reader.documents == "paragraph":
            return _read_paragraphs(source, file)
        return read_whole(
            source, file, lambda data: decode_text(data, source.reader.encoding, source.language)
        )

    def has_one_document_per_file(self, source: SourceConfig) -> bool:
        """With ``documents: file``."""
        return source.reader.documents == "file"

    def divide(self, source: SourceConfig, file: InputFile, count: int, streamed: int) -> Iterable[InputFile]:
        """With ``documents: line``: ranges of bytes, or every n-th line."""
        return divided_lines(file, count, streamed) if source.reader.documents == "line" else [file]


def _text_line(
    source: SourceConfig, file: InputFile, line: bytes, where: str, number: int
) -> Document | BadRecord:
    try:
        text = line.decode(source.reader.encoding or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        return BadRecord("read.undecodable", where, str(error), repr(line[:200]), len(line))
    return new_document(source, f"{source.name}/{file.name}#{number}", text, len(line), file=file.name)


def _read_paragraphs(source: SourceConfig, file: InputFile) -> Records:
    """Blocks of lines between blank ones; one that is too long or not decodable costs only itself.

    A file that is short enough is decoded as a whole, which is more to detect an encoding by. A longer
    one is decoded block by block: in its ``reader.encoding``, or UTF-8.
    """
    limit, encoding = source.reader.maximum_document_bytes, source.reader.encoding or "utf-8"
    with open_stream(file.path) as stream:
        data = stream.read(limit + 1)
        if len(data) <= limit:
            stream.read(1)  # raises if this is not the real end
            with contextlib.suppress(UndecodableInput):  # else its blocks say which of them
                text = decode_text(data, source.reader.encoding, source.language)
                data, encoding = text.encode(errors="replace"), "utf-8"
            stream = io.BytesIO(data)
        else:
            stream = io.BufferedReader(Chained(data, stream))
        for number, (line, block) in enumerate(_blocks(read_lines(stream, limit), limit), start=1):
            where = f"{file.name}, line {line}"
            if block is None:
                detail = f"a paragraph of more than {limit:,} bytes"
                yield number, BadRecord("read.oversized", where, detail, size_bytes=limit)
                continue
            try:
                text = "\n".join(block.decode(encoding).splitlines())
            except (UnicodeDecodeError, LookupError) as error:
                yield number, BadRecord("read.undecodable", where, str(error), repr(block[:200]), len(block))
                continue
            identifier = f"{source.name}/{file.name}#{number - 1}"
            yield number, new_document(source, identifier, text, len(block), file=file.name)


def _blocks(lines: Iterator[tuple[int, bytes | None]], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """First line and bytes of each block; None for one that is too long."""
    block: list[bytes] | None = []
    first = size = 0
    for number, line in lines:
        if line is not None and not line.decode(errors="replace").strip():
            if first:
                yield first, None if block is None else b"\n".join(block)
            block, first, size = [], 0, 0
            continue
        first = first or number
        size += 0 if line is None else len(line) + 1
        if line is None or size > limit:
            block = None
        elif block is not None:
            block.append(line)
    if first:
        yield first, None if block is None else b"\n".join(block)
