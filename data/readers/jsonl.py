"""``format: jsonl``: a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tsugiki.data.common.shard import InputFile
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import BadRecord, Reader, Records
from tsugiki.data.readers.lines import divided_lines, line_numbers, lines_of
from tsugiki.data.readers.records import document_of_record

if TYPE_CHECKING:
    from datatrove.data import Document


@READERS.register("jsonl")
class JsonlReader(Reader):
    """JSON objects, one a line; fields by ``reader.text_key``, ``id_key``, ``url_key``."""

    kinds = frozenset({"text", "parallel", "instruction", "preference"})

    def read(self, source: SourceConfig, file: InputFile) -> Records:
        """Objects of the file."""
        return lines_of(source, file, _json_line)

    def record_numbers(self, source: SourceConfig, file: InputFile) -> Iterator[int]:
        """Numbers of the lines, none of them parsed."""
        return line_numbers(source, file)

    def divide(self, source: SourceConfig, file: InputFile, count: int, streamed: int) -> Iterator[InputFile]:
        """Ranges of bytes, or every n-th line."""
        return divided_lines(file, count, streamed)


def _json_line(
    source: SourceConfig, file: InputFile, line: bytes, where: str, number: int
) -> Document | BadRecord:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return BadRecord("read.undecodable", where, str(error), repr(line[:200]), len(line))
    except (ValueError, RecursionError) as error:
        excerpt = line[:200].decode(errors="replace")
        return BadRecord("read.invalid_json", where, str(error), excerpt, len(line))
    return document_of_record(source, file, record, where, number, len(line))
