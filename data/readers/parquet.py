"""``format: parquet``: a batch of rows at a time and only the columns that are used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from tsugiki.data.common.shard import InputFile
from tsugiki.data.common.streams import open_stream
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import BadRecord, Reader, Records, numbered_parts
from tsugiki.data.readers.records import document_of_record
from tsugiki.experiment.artefacts.shards import TruncatedInput

if TYPE_CHECKING:
    from datatrove.data import Document

_ROWS = 1000
_BATCH_BYTES = 64_000_000
_PREFIXED_ROWS = 16
"""Rows together where a row may repeat the beginning of the one before it and so be longer than what is stored."""
_MOST_EXPANSION = 100
"""Text compresses 3 to 10 times."""
_VALUES, _VALUES_PER_ROW = 1_000_000, 1000
"""Values of a nested column in a row group: no conversation has a thousand messages on average."""


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


def read_parquet(source: SourceConfig, file: InputFile) -> Records:
    """Rows of a Parquet file.

    Raises:
        TruncatedInput: not a Parquet file, or cut short.
        OSError: it cannot be opened.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with open_stream(file.path, unpack=False) as stream:
        try:
            present = ParquetFile(stream).schema_arrow.names
            columns = [name for name in used_columns(source) if name in present]
            table = _opened(stream, columns)
            groups = range(table.num_row_groups)
            if (part := file.part) is not None:
                groups = groups[
                    part.number * len(groups) // part.count : (part.number + 1) * len(groups) // part.count
                ]
            number = sum(table.metadata.row_group(group).num_rows for group in range(groups.start))
            for group in groups:
                about = table.metadata.row_group(group)
                swollen = _swollen(about, columns, source.reader.maximum_document_bytes)
                if swollen is not None:
                    where = f"{file.name}, row {number + 1} to {number + about.num_rows}"
                    yield number + 1, BadRecord("read.oversized", where, swollen)
                    number += about.num_rows
                    continue
                rows = _rows_together(about, columns)
                for batch in table.iter_batches(batch_size=rows, columns=columns, row_groups=[group]):
                    for row in range(batch.num_rows):
                        number += 1
                        yield number, _row(source, file, batch, row, number, present)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TruncatedInput(f"parquet: {' '.join(str(error).split())}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise TruncatedInput(f"parquet: {error}") from error


def _row(
    source: SourceConfig, file: InputFile, batch: Any, row: int, number: int, present: list[str]
) -> Document | BadRecord:
    """A row as a document; what is wrong with it costs no other one."""
    where = f"{file.name}, row {number}"
    try:
        record = {
            name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
    except UnicodeDecodeError as error:
        return BadRecord("read.undecodable", where, str(error), repr(error.object[:200]), len(error.object))
    size = sum(len(value.encode()) for value in record.values() if isinstance(value, str))
    if size > source.reader.maximum_document_bytes:
        return BadRecord("read.oversized", where, f"{size:,} bytes", size_bytes=size)
    return document_of_record(source, file, record, where, number, size, present)


def _opened(stream: BinaryIO, columns: list[str]) -> Any:
    """The file, its texts read as dictionaries: a value that is stored once for a million rows is held once."""
    from pyarrow.parquet import ParquetFile

    schema = ParquetFile(stream).schema
    leaves = [schema.column(place) for place in range(len(schema))]
    texts = [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY" and leaf.path.split(".")[0] in columns
    ]
    return ParquetFile(stream, read_dictionary=texts)


def _used(group: Any, columns: list[str]) -> list[Any]:
    chunks = (group.column(place) for place in range(group.num_columns))
    return [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]


def _swollen(group: Any, columns: list[str], maximum_bytes: int) -> str | None:
    """Why a row group is not unpacked: a kilobyte can ask for gigabytes; None where it can be."""
    for chunk in _used(group, columns):
        packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
        if unpacked > max(_MOST_EXPANSION * packed, 4 * maximum_bytes):
            return f"column {chunk.path_in_schema}: {packed:,} bytes unpack to {unpacked:,}"
        if chunk.num_values > _VALUES + _VALUES_PER_ROW * group.num_rows:
            return f"column {chunk.path_in_schema}: {chunk.num_values:,} values in {group.num_rows:,} rows"
    return None


def _rows_together(group: Any, columns: list[str]) -> int:
    """Rows of a batch: as many as have about ``_BATCH_BYTES``."""
    chunks = _used(group, columns)
    if any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in chunks):
        return _PREFIXED_ROWS
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    return max(1, min(_ROWS, _BATCH_BYTES * group.num_rows // max(1, size)))


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
