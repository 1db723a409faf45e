"""Reads the files of a shard into datatrove documents; bad input is counted or stops the run.

Every problem has a name (``read.truncated``, ``read.invalid_json``, …) under which the report
counts and samples it.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.charset import UndecodableInput, decode_page, decode_text, encodable
from tsugiki.data.common.stats import Ledger
from tsugiki.data.common.streams import (
    Chained,
    TruncatedInput,
    byte_range,
    open_stream,
    read_limited,
    read_lines,
)
from tsugiki.data.config import OnError, SourceConfig
from tsugiki.data.readers.planning import InputFile, Shard, name_hash
from tsugiki.experiment.errors import DataError


@dataclass(frozen=True)
class BadRecord:
    """Something in the input that is not a document.

    Attributes:
        rule: its name in the report.
        where: file name and line or record.
        detail: the reason, for people.
        excerpt: the beginning of the record.
        size_bytes: length of the record where known.
        is_bad: False for records that are fine but not wanted; these never stop a run.
    """

    rule: str
    where: str
    detail: str
    excerpt: str = ""
    size_bytes: int = 0
    is_bad: bool = True


Records = Iterator[tuple[int, Document | BadRecord]]
"""Number of a record in its file (a line, row or archive record, from 1), and the record."""


class SourceReader(PipelineStep):
    """Yields the documents of some files of a source.

    Args:
        source: the source.
        shard: what to read.
        ledger: where counts and bad input go.
        on_error: ``skip`` counts bad input, ``fail`` raises.

    Raises:
        DataError: bad input with ``on_error: fail``; the message names file, line and reason.
    """

    name = "read"
    type = "reader"

    def __init__(self, source: SourceConfig, shard: Shard, ledger: Ledger, on_error: OnError) -> None:
        super().__init__()
        self.source = source
        self.shard = shard
        self.ledger = ledger
        self.on_error = on_error

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of all files; ``data`` (documents of an earlier step) passes through first."""
        if data:
            yield from data
        for file in self.shard.files:
            for record in self._checked(file):
                if isinstance(record, BadRecord):
                    self._refuse(record)
                    continue
                self.ledger.read.documents += 1
                self.ledger.read.bytes += record.metadata.pop("input_bytes")
                yield record

    def _checked(self, file: InputFile) -> Iterator[Document | BadRecord]:
        """Records of a file; the end of a damaged file becomes a bad record."""
        # Every streamed part meets what is wrong with the file as a whole: the first one reports it.
        reports = file.part is None or file.part.number == 0 or file.part.end is not None
        try:
            empty = reports
            limit = self.shard.hash_limit
            for number, record in read_file(self.source, file):
                empty = False
                if limit is None or name_hash(file.name, str(number)) <= limit:
                    yield record
            if empty:
                yield BadRecord("read.empty_file", file.name, "no records in the file")
        except TruncatedInput as error:
            if reports or self.source.format == "parquet":
                yield BadRecord("read.truncated", file.name, str(error))
        except OSError as error:
            if reports:
                yield BadRecord("read.unreadable", file.name, f"{error.strerror or error}")

    def _refuse(self, record: BadRecord) -> None:
        if record.is_bad and self.on_error == "fail":
            raise DataError(
                f"bad input in source '{self.source.name}': {record.rule.removeprefix('read.')}",
                where=record.where,
                got=record.detail,
                fix="correct the file, or set corpus.on_error=skip to count and skip such records",
            )
        self.ledger.bad_input(record.rule, record.where, record.detail, record.excerpt, record.size_bytes)


def read_file(source: SourceConfig, file: InputFile) -> Records:
    """Records of one file, by the source's format.

    Raises:
        TruncatedInput: the compressed data is cut short or corrupt.
        OSError: the file cannot be opened.
    """
    if source.format == "parquet":
        from tsugiki.data.readers.parquet import read_parquet

        yield from read_parquet(source, file)
        return
    if source.format in ("warc", "wet"):
        from tsugiki.data.readers.warc import read_warc

        yield from read_warc(source, file)
        return
    with open_stream(file.path) as stream:
        if source.format == "text" and source.reader.documents == "paragraph":
            yield from _read_paragraphs(source, file, stream)
        elif source.format == "jsonl" or (source.format == "text" and source.reader.documents == "line"):
            yield from _read_lines(source, file, stream)
        else:
            yield from enumerate(_read_whole(source, file, stream), start=1)


def hash_limit(source: SourceConfig, files: list[InputFile], count: int) -> int | None:
    """Largest hash among the ``count`` records of the smallest hash; None when there are no more.

    Reads the source once more, without extraction: what is chosen then does not depend on order.
    """
    smallest: list[int] = []  # a heap of the smallest hashes, negated: its root is the largest
    total = 0
    for file in files:
        try:
            for number in _record_numbers(source, file):
                total += 1
                value = -name_hash(file.name, str(number))
                if len(smallest) < count:
                    heapq.heappush(smallest, value)
                elif value > smallest[0]:
                    heapq.heapreplace(smallest, value)
        except (TruncatedInput, OSError):
            continue  # counted when the file is read
    return -smallest[0] if total > count else None


def _record_numbers(source: SourceConfig, file: InputFile) -> Iterator[int]:
    if source.format != "jsonl":
        for number, _ in read_file(source, file):
            yield number
        return
    with open_stream(file.path) as stream:
        for number, line in read_lines(stream, source.reader.maximum_document_bytes):
            if line is None or line.strip():
                yield number


def new_document(
    source: SourceConfig, identifier: str, text: str, input_bytes: int, **metadata: Any
) -> Document:
    """A document with the metadata every document has; its names and addresses fit into UTF-8."""
    known = {"language": source.language, "source": source.name}
    extra = {
        key: encodable(value) if isinstance(value, str) else value
        for key, value in metadata.items()
        if value is not None
    }
    metadata = known | extra | {"input_bytes": input_bytes}
    return Document(text=text, id=encodable(identifier), metadata=metadata)


def _read_whole(source: SourceConfig, file: InputFile, stream: BinaryIO) -> Iterator[Document | BadRecord]:
    limit = source.reader.maximum_document_bytes
    data = read_limited(stream, limit)
    if data is None:
        yield BadRecord("read.oversized", file.name, f"more than {limit:,} bytes", size_bytes=file.size_bytes)
        return
    try:
        if source.format == "html" and source.reader.encoding is None:
            text = decode_page(data, language=source.language)
        else:
            text = decode_text(data, source.reader.encoding, source.language)
    except UndecodableInput as error:
        yield BadRecord("read.undecodable", file.name, str(error), repr(data[:200]), len(data))
        return
    if text.strip():
        yield new_document(source, f"{source.name}/{file.name}", text, len(data), file=file.name)


def _read_paragraphs(source: SourceConfig, file: InputFile, stream: BinaryIO) -> Records:
    """Blocks of lines between blank ones; one that is too long or not decodable costs only itself.

    A file that is short enough is decoded as a whole, which is more to detect an encoding by. A longer
    one is decoded block by block: in its ``reader.encoding``, or UTF-8.
    """
    limit, encoding = source.reader.maximum_document_bytes, source.reader.encoding or "utf-8"
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


def _read_lines(source: SourceConfig, file: InputFile, stream: BinaryIO) -> Records:
    limit, part = source.reader.maximum_document_bytes, file.part
    record_of = _json_line if source.format == "jsonl" else _text_line
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


def _text_line(
    source: SourceConfig, file: InputFile, line: bytes, where: str, number: int
) -> Document | BadRecord:
    try:
        text = line.decode(source.reader.encoding or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        return BadRecord("read.undecodable", where, str(error), repr(line[:200]), len(line))
    return new_document(source, f"{source.name}/{file.name}#{number}", text, len(line), file=file.name)


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


def document_of_record(
    source: SourceConfig,
    file: InputFile,
    record: Any,
    where: str,
    number: int,
    size: int,
    fields: Sequence[str] = (),
) -> Document | BadRecord:
    """A JSONL or Parquet record as a document, by the source's kind and reader options.

    Args:
        source: the source.
        file: where the record is.
        record: the record.
        where: its place, for people.
        number: its number in the file.
        size: its bytes.
        fields: what the file has, where the record holds only the fields that are used.
    """
    if not isinstance(record, dict):
        detail = f"a {type(record).__name__}, not an object"
        return BadRecord("read.wrong_type", where, detail, str(record), size)
    options = source.reader
    url = lookup(record, options.url_key)
    identifier = lookup(record, options.id_key)
    if isinstance(identifier, int):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier:
        identifier = f"{file.name}#{number}"
    metadata = {"url": url if isinstance(url, str) else None, "file": file.name}
    identifier = f"{source.name}/{identifier}"
    if source.kind == "instruction":
        messages = lookup(record, options.messages_key)
        problem = _messages_problem(messages, options.messages_key)
        if problem is not None:
            return BadRecord("read.wrong_type", where, problem, str(record), size)
        kept = [{"role": item["role"], "content": encodable(item["content"])} for item in messages]
        return new_document(source, identifier, "", size, messages=kept, **metadata)
    if source.parallel is not None:
        keys = [source.parallel.source_key, source.parallel.target_key]
    else:
        keys = [options.text_key]
    texts: list[str] = []
    for key in keys:
        value = lookup(record, key)
        if value is None:
            available = ", ".join(list(fields or record)[:12])
            detail = f"no field '{key}'; the record has: {available}"
            return BadRecord("read.missing_field", where, detail, str(record), size)
        if not isinstance(value, str):
            detail = f"field '{key}' is a {type(value).__name__}, not a string"
            return BadRecord("read.wrong_type", where, detail, str(record), size)
        texts.append(value)
    if source.parallel is not None:
        return new_document(source, identifier, "", size, pair=texts, **metadata)
    return new_document(source, identifier, texts[0], size, **metadata)


def _messages_problem(messages: Any, key: str) -> str | None:
    """What is wrong with a conversation, None when nothing is."""
    if not isinstance(messages, list) or not messages:
        return f"field '{key}' is not a list of messages"
    for item in messages:
        if not isinstance(item, dict):
            return f"a message of '{key}' is a {type(item).__name__}, not an object"
        if item.get("role") not in ("system", "user", "assistant", "tool"):
            return f"a message of '{key}' has the role {item.get('role')!r}"
        if not isinstance(item.get("content"), str):
            return f"a message of '{key}' has no text under 'content'"
    if not any(item["role"] == "assistant" for item in messages):
        return f"'{key}' has no assistant message to learn from"
    if not any(item["role"] == "assistant" and item["content"].strip() for item in messages):
        return f"all assistant messages of '{key}' are empty"
    return None


def lookup(record: dict[str, Any], dotted: str) -> Any:
    """Value of a field; a dotted path goes into nested objects unless the name itself is a field."""
    if dotted in record:
        return record[dotted]
    value: Any = record
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
