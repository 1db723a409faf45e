"""Files of one record a line: reading and dividing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tsugiki.data.common.shard import InputFile, Part
from tsugiki.data.common.streams import byte_range, open_stream, read_lines
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers.base import BadRecord, Records, numbered_parts

if TYPE_CHECKING:
    from datatrove.data import Document

_PACKED = (".gz", ".zst", ".bz2", ".xz")
_CHUNK_BYTES = 1 << 22

LineReader: TypeAlias = "Callable[[SourceConfig, InputFile, bytes, str, int], Document | BadRecord]"
"""Makes a record of a line: source, file, line, its place for people, its number."""


def lines_of(source: SourceConfig, file: InputFile, record_of: LineReader) -> Records:
    """Records of a file of lines; blank ones are none."""
    limit, part = source.reader.maximum_document_bytes, file.part
    with open_stream(file.path) as stream:
        before = 0
        if part is not None and part.end is not None:
            stream, before = byte_range(stream, part.start, part.end), part.lines_before
        for number, line in read_lines(stream, limit):
            number += before
            if part is not None and not part.has(number):
                continue
            where = f"{file.name}, line {number}"
            if line is None:
                detail = f"a line of more than {limit:,} bytes"
                yield number, BadRecord("read.oversized", where, detail, size_bytes=limit)
            elif line.strip():
                yield number, record_of(source, file, line, where, number)


def line_numbers(source: SourceConfig, file: InputFile) -> Iterator[int]:
    """Numbers of the lines that are not blank."""
    with open_stream(file.path) as stream:
        for number, line in read_lines(stream, source.reader.maximum_document_bytes):
            if line is None or line.strip():
                yield number


def divided_lines(file: InputFile, count: int, streamed: int) -> Iterator[InputFile]:
    """Parts: ranges of bytes where the file is local and not packed, else every n-th line."""
    if "://" not in file.path and not file.path.lower().endswith(_PACKED):
        return _byte_ranges(file, count)
    return numbered_parts(file, min(count, streamed))


def _byte_ranges(file: InputFile, count: int) -> Iterator[InputFile]:
    """Parts that begin at the first line after equal shares of the file, with their line numbers."""
    targets = [number * file.size_bytes // count for number in range(1, count)]
    begins: list[tuple[int, int]] = [(0, 0)]  # offset in bytes, lines before it
    offset = lines = 0
    with Path(file.path).open("rb") as stream:
        while targets and (chunk := stream.read(_CHUNK_BYTES)):
            place = 0  # up to which the lines of the chunk are counted
            while targets and (end := chunk.find(b"\n", max(0, targets[0] - 1 - offset)) + 1):
                lines += chunk.count(b"\n", place, end)
                place = end
                begins.append((offset + end, lines))
                targets = [target for target in targets if target > offset + end]
            lines += chunk.count(b"\n", place)
            offset += len(chunk)
    begins = [begin for begin in begins if begin[0] < file.size_bytes]
    ends = [begin for begin, _ in begins[1:]] + [file.size_bytes]
    for number, ((start, before), end) in enumerate(zip(begins, ends, strict=True)):
        part = Part(number, len(begins), start=start, end=end, lines_before=before)
        yield replace(file, size_bytes=end - start, part=part if len(begins) > 1 else None)
