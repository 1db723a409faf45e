"""Reads Parquet files, a batch of rows at a time and only the columns that are used."""

from __future__ import annotations

from tsugiki.data.common.streams import TruncatedInput, open_stream
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers.planning import InputFile
from tsugiki.data.readers.reader import BadRecord, Records, document_of_record

_ROWS = 1000


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
