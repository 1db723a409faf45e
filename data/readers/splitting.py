"""Divides large input files into parts that different shards read.

How depends on the file, never on the number of workers:

- local, uncompressed lines (JSONL, text by line): ranges of bytes that begin at lines;
- Parquet: row groups;
- everything that has to be unpacked or fetched from its beginning: every n-th record. Each part then
  unpacks the whole file, so there are few of them: it costs little beside the filters.

Pages and texts of one document per file are not divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tsugiki.data.config import SourceConfig
from tsugiki.data.readers.planning import InputFile, Part

STREAMED_PARTS = 64
"""A source is divided into no more streamed parts than about this many."""
_ARCHIVE_FACTOR = 4
"""Unpacking a WARC costs about as much as extracting a twentieth of its pages: larger parts."""
_PACKED = (".gz", ".zst", ".bz2", ".xz")
_CHUNK_BYTES = 1 << 22


def divided(source: SourceConfig, files: Sequence[InputFile], maximum_bytes: int) -> list[InputFile]:
    """The files, those above ``maximum_bytes`` in parts of about that size."""
    streamed = max(1, STREAMED_PARTS // max(1, len(files)))
    return [part for file in files for part in _parts(source, file, maximum_bytes, streamed)]


def _parts(source: SourceConfig, file: InputFile, maximum_bytes: int, streamed: int) -> Iterator[InputFile]:
    count = -(-file.size_bytes // maximum_bytes)
    by_line = source.format == "jsonl" or (source.format == "text" and source.reader.documents == "line")
    if count < 2 or not (by_line or source.format in ("parquet", "warc", "wet")):
        yield file
        return
    if by_line and "://" not in file.path and not file.path.lower().endswith(_PACKED):
        yield from _byte_ranges(file, count)
        return
    if source.format == "parquet":
        count = min(count, _row_groups(file))
    elif source.format in ("warc", "wet"):
        count = min(-(-count // _ARCHIVE_FACTOR), streamed)
    else:
        count = min(count, streamed)
    if count < 2:
        yield file
        return
    for number in range(count):
        size = (number + 1) * file.size_bytes // count - number * file.size_bytes // count
        yield replace(file, size_bytes=size, part=Part(number, count))


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


def _row_groups(file: InputFile) -> int:
    """Row groups of a Parquet file; 1 where it cannot be read, which its reader will report."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    from tsugiki.data.common.streams import open_stream

    try:
        with open_stream(file.path, unpack=False) as stream:
            return max(1, int(ParquetFile(stream).num_row_groups))
    except (OSError, pa.ArrowException):
        return 1
