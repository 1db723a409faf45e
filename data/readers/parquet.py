"""``format: parquet``: a batch of rows at a time and only the columns that are used."""

from __future__ import annotations

from collections.abc import Iterator

from tsugiki.data.common.shard import InputFile
from tsugiki.data.common.streams import open_stream
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import BadRecord, Reader, Records, numbered_parts
from tsugiki.data.readers.records import document_of_record
from tsugiki.experiment.artefacts.shards import TruncatedInput

_ROWS = 1000


@READERS.register("parquet")
class ParquetReader(Reader):
    """Rows; columns by ``reader.text_key``, ``id_key``, ``url_key``."""

    kinds = frozenset({"text", "parallel", "instruction"})
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
            table = ParquetFile(stream)
            present = table.schema_arrow.names
            columns = [name for name in used_columns(source) if name in present]
            groups = range(table.num_row_groups)
            if (part := file.part) is not None:
                groups = groups[
                    part.number * len(groups) // part.count : (part.number + 1) * len(groups) // part.count
                ]
            number = sum(table.metadata.row_group(group).num_rows for group in range(groups.start))
            for batch in table.iter_batches(batch_size=_ROWS, columns=columns, row_groups=list(groups)):
                for record in batch.to_pylist():
                    number += 1
                    where = f"{file.name}, row {number}"
                    size = sum(len(value.encode()) for value in record.values() if isinstance(value, str))
                    if size > source.reader.maximum_document_bytes:
                        bad = BadRecord("read.oversized", where, f"{size:,} bytes", size_bytes=size)
                        yield number, bad
                        continue
                    yield number, document_of_record(source, file, record, where, number, size, present)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
            raise TruncatedInput(f"parquet: {' '.join(str(error).split())}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise TruncatedInput(f"parquet: {error}") from error


def used_columns(source: SourceConfig) -> list[str]:
    """Top-level columns a source reads."""
    options = source.reader
    names = [options.id_key, options.url_key]
    if source.kind == "instruction":
        names.append(options.messages_key)
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
