"""``format: parquet``: a batch of rows at a time and only the columns that are used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from tsugiki.data.common.memory import memory_at_most
from tsugiki.data.common.shard import InputFile
from tsugiki.data.common.streams import open_stream
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import BadRecord, Reader, Records, numbered_parts
from tsugiki.data.readers.parquet_pages import Encoding, column_pages
from tsugiki.data.readers.records import document_of_record
from tsugiki.experiment.artefacts.shards import TruncatedInput

if TYPE_CHECKING:
    from datatrove.data import Document

_ROWS = 1000
_BATCH_BYTES = 64_000_000
_BUFFER_BYTES = 1 << 20
"""Read at a time from the file; without it pyarrow reads a whole column of a row group."""
_FEW_ROWS = 16
"""Rows together where values may be longer than what is stored of them, and are not read as dictionaries."""
_AS_DICTIONARY = frozenset({Encoding.PLAIN, Encoding.PLAIN_DICTIONARY, Encoding.RLE_DICTIONARY})
"""What pyarrow can read as dictionaries."""
_LONGER_THAN_STORED = frozenset(
    {Encoding.PLAIN_DICTIONARY, Encoding.RLE_DICTIONARY, Encoding.DELTA_BYTE_ARRAY}
)
_MOST_EXPANSION = 100
"""Text compresses 3 to 10 times."""
_VALUES, _VALUES_PER_ROW = 1_000_000, 1000
"""Values of a nested column in a row group: no conversation has a thousand messages on average."""
_ROWS_ALWAYS, _ROWS_PER_BYTE = 1 << 20, 1000
"""Rows of a group: pyarrow writes no more than the former, and equal or missing values take no bytes at all."""
_ROOM_BYTES, _ROOM_PER_PAGE = 1 << 30, 4
"""Memory for a batch, and for each byte of its columns' largest pages: unpacked, decoded, divided into rows. It is the
net below the checks: a page's content can lie, too."""
_ELEMENT_BYTES = 200
"""Of a value of a nested column as a Python object."""


@READERS.register("parquet")
class ParquetReader(Reader):
    """Rows; columns by ``reader.text_key``, ``id_key``, ``url_key``."""

    kinds = frozenset({"text", "parallel", "instruction", "preference"})
    parts_report_damage = True

    def read(self, source: SourceConfig, file: InputFile) -> Records:
        """Rows of the file, or of a range of its row groups."""
        return read_parquet(source, file)

    def divide(self, source: SourceConfig, file: InputFile, count: int, streamed: int) -> Iterator[InputFile]:
        """Row groups."""
        return numbered_parts(file, min(count, _row_groups(file)))


@dataclass(frozen=True)
class _Table:
    """An open file.

    Attributes:
        stream: its bytes.
        metadata: pyarrow's view of its footer.
        fields: names of the top-level columns.
        columns: the ones that the source uses.
        leaves: the stored columns below those by their place; all where there are none.
    """

    stream: BinaryIO
    metadata: Any
    fields: list[str]
    columns: list[str]
    leaves: dict[int, Any]

    def batches(self, group: int, rows: int, plain: set[int]) -> Iterator[Any]:
        """Some rows of a row group together.

        Texts are read as dictionaries: a value that is stored once for a million rows is held once.

        Args:
            group: the row group.
            rows: how many together.
            plain: places of columns that pyarrow cannot read so.
        """
        from pyarrow.parquet import ParquetFile

        texts = [
            leaf.path
            for place, leaf in self.leaves.items()
            if leaf.physical_type == "BYTE_ARRAY" and place not in plain
        ]
        file = ParquetFile(
            self.stream, metadata=self.metadata, read_dictionary=texts, buffer_size=_BUFFER_BYTES
        )
        # Threads would each reserve memory of their own; workers have a core each anyway.
        yield from file.iter_batches(
            batch_size=rows, columns=self.columns, row_groups=[group], use_threads=False
        )


class _TooLarge(Exception):
    """A row group is not read, or not to its end; why."""


def read_parquet(source: SourceConfig, file: InputFile) -> Records:
    """Rows of a Parquet file.

    Raises:
        TruncatedInput: not a Parquet file, or cut short.
        OSError: it cannot be opened.
    """
    import pyarrow as pa

    with open_stream(file.path, unpack=False) as stream:
        try:
            table = _opened(stream, used_columns(source))
            about = table.metadata
            groups = range(about.num_row_groups)
            if (part := file.part) is not None:
                groups = groups[
                    part.number * len(groups) // part.count : (part.number + 1) * len(groups) // part.count
                ]
            start = sum(about.row_group(group).num_rows for group in range(groups.start))
            for group in groups:
                number, start = start, start + about.row_group(group).num_rows
                try:
                    for batch in _batches(table, group, source.reader.maximum_document_bytes):
                        expanded = _expanded_bytes(batch)
                        for row in range(batch.num_rows):
                            number += 1
                            yield number, _row(source, file, batch, row, number, table.fields, expanded)
                except _TooLarge as error:
                    where = f"{file.name}, row {number + 1} to {start}"
                    yield number + 1, BadRecord("read.oversized", where, str(error))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TruncatedInput(f"parquet: {' '.join(str(error).split())}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise TruncatedInput(f"parquet: {error}") from error


def _row(
    source: SourceConfig,
    file: InputFile,
    batch: Any,
    row: int,
    number: int,
    present: list[str],
    expanded: int,
) -> Document | BadRecord:
    """A row as a document; what is wrong with it costs no other one."""
    where, limit = f"{file.name}, row {number}", source.reader.maximum_document_bytes
    # As Python objects a value that a row has a thousand times is there a thousand times.
    size = _expanded_bytes(batch.slice(row, 1)) if expanded > limit else expanded
    if size > limit:
        return BadRecord("read.oversized", where, f"{size:,} bytes", size_bytes=size)
    try:
        record = {
            name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
    except UnicodeDecodeError as error:
        return BadRecord("read.undecodable", where, str(error), repr(error.object[:200]), len(error.object))
    size = sum(len(value.encode()) for value in record.values() if isinstance(value, str))
    return document_of_record(source, file, record, where, number, size, present)


def _expanded_bytes(data: Any) -> int:
    """Bytes of a batch or array as Python objects, about; those of texts exactly."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = getattr(data, "type", None)
    if kind is None or pa.types.is_struct(kind):
        columns = data.columns if kind is None else data.flatten()
        return sum(_expanded_bytes(column) for column in columns)
    if pa.types.is_dictionary(kind):
        lengths = pc.take(pc.binary_length(data.dictionary), data.indices)
        return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if pa.types.is_map(kind):
        return _ELEMENT_BYTES * len(data.keys) + _expanded_bytes(data.keys) + _expanded_bytes(data.items)
    if pa.types.is_nested(kind):
        inner = data.flatten()
        return _ELEMENT_BYTES * len(inner) + _expanded_bytes(inner)
    return int(data.nbytes)


def _opened(stream: BinaryIO, used: list[str]) -> _Table:
    """The file, with what its footer says of the columns that are used.

    Raises:
        TruncatedInput: the footer speaks of more bytes than there are.
    """
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(stream)
    stored = [file.schema.column(place) for place in range(len(file.schema))]
    fields = file.schema_arrow.names
    columns = [name for name in used if name in fields]
    leaves = {place: leaf for place, leaf in enumerate(stored) if leaf.path.split(".")[0] in columns}
    leaves = leaves or dict(enumerate(stored))
    groups = (file.metadata.row_group(group) for group in range(file.metadata.num_row_groups))
    stated = sum(max(0, group.column(place).total_compressed_size) for group in groups for place in leaves)
    size = stream.seek(0, os.SEEK_END)
    if stated > size:  # the same pages again and again
        raise TruncatedInput(f"parquet: {stated:,} bytes of pages in a file of {size:,}")
    return _Table(stream, file.metadata, fields, columns, leaves)


def _batches(table: _Table, group: int, maximum_bytes: int) -> Iterator[Any]:
    """A row group, as many rows together as have about :data:`_BATCH_BYTES`.

    Raises:
        _TooLarge: a kilobyte can ask for gigabytes.
        TruncatedInput: its columns are not where the footer says.
    """
    about = table.metadata.row_group(group)
    pages = {place: column_pages(table.stream, about.column(place)) for place in table.leaves}
    packed = sum(column.packed for column in pages.values())
    unpacked = sum(
        max(column.unpacked, _fixed_width(table.leaves[place]) * column.values)
        for place, column in pages.items()
    )
    values = max((column.values for column in pages.values()), default=0)
    if unpacked > max(_MOST_EXPANSION * packed, 4 * maximum_bytes):
        raise _TooLarge(f"{packed:,} bytes unpack to {unpacked:,}")
    if values > _VALUES + _VALUES_PER_ROW * about.num_rows:
        raise _TooLarge(f"{values:,} values in {about.num_rows:,} rows")
    if about.num_rows > _ROWS_ALWAYS + _ROWS_PER_BYTE * packed:
        raise _TooLarge(f"{about.num_rows:,} rows in {packed:,} bytes")
    rows = max(1, min(_ROWS, _BATCH_BYTES * about.num_rows // max(1, unpacked)))
    plain = {place for place, column in pages.items() if not column.encodings <= _AS_DICTIONARY}
    if any(pages[place].encodings & _LONGER_THAN_STORED for place in plain):
        rows = min(rows, _FEW_ROWS)
    room = _ROOM_BYTES + _ROOM_PER_PAGE * sum(column.largest for column in pages.values())
    batches = table.batches(group, rows, plain)
    while True:
        with _within(room, packed):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _fixed_width(leaf: Any) -> int:
    """Bytes of each value, which may be stored once for all rows; 0 where they differ."""
    return int(leaf.length) if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0


@contextmanager
def _within(room: int, packed: int) -> Iterator[None]:
    try:
        with memory_at_most(room):
            yield
    except MemoryError as error:
        raise _TooLarge(f"{packed:,} bytes ask for more than {room:,} bytes of memory") from error


def used_columns(source: SourceConfig) -> list[str]:
    """Top-level columns a source reads."""
    options = source.reader
    names = [options.id_key, options.url_key]
    if source.kind == "instruction":
        names.append(options.messages_key)
    elif source.kind == "preference":
        names += [options.prompt_key, options.chosen_key, options.rejected_key]
    elif source.parallel is not None:
        names += [source.parallel.source_key, source.parallel.target_key]
    else:
        names.append(options.text_key)
    return list(dict.fromkeys(part for name in names for part in (name, name.split(".")[0])))


def _row_groups(file: InputFile) -> int:
    """Row groups of a Parquet file; 1 where it cannot be read, which its reader will report."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with open_stream(file.path, unpack=False) as stream:
            return max(1, int(ParquetFile(stream).num_row_groups))
    except (OSError, pa.ArrowException):
        return 1
