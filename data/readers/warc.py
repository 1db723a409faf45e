"""``format: warc``: pages of a web archive (Common Crawl), and what its text archives (WET) share with it.

Unpacking (:mod:`tsugiki.data.common.streams`) and the division into records are ours, because warcio reads a header
that is cut short as a whole one and a wrong Content-Length as a right one; what is in a record is
parsed by warcio. Responses that are no web pages (images, errors of the server) are counted as
skipped, which is not bad input; requests and metadata, which no one asked for, are not counted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeAlias

from tsugiki.data.common.charset import UndecodableInput, decode_page, decode_text
from tsugiki.data.common.shard import InputFile
from tsugiki.data.common.streams import open_stream
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import BadRecord, Reader, Records, new_document, numbered_parts
from tsugiki.experiment.artefacts.shards import TruncatedInput

if TYPE_CHECKING:
    from datatrove.data import Document

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_LOOKS_LIKE_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body)\b", re.I)

# ISO 28500: version line, named fields, a blank line, the block, two blank lines.
_VERSION = re.compile(rb"WARC/\d\.\d+[ \t]*\r?\n")
_NEXT_RECORD = re.compile(rb"\r?\n\r?\n(WARC/\d\.\d+[ \t]*\r?\n)")
_FIELD = re.compile(rb"^(WARC-Type|Content-Length)[ \t]*:[ \t]*(.*?)[ \t]*\r?$", re.I | re.M)
_TYPES = frozenset(
    ("warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion", "continuation")
)
_UNPACKED = ("", "identity", "gzip", "deflate")
"""Content-Encodings that warcio unpacks; Common Crawl stores pages without any."""
_LINE_BYTES = 1 << 16
_HEADER_BYTES = 1 << 20
_SKIP_BYTES = 1 << 20
_PART_FACTOR = 4
"""Unpacking a WARC costs about as much as extracting a twentieth of its pages: larger parts."""


@dataclass(frozen=True)
class _Frame:
    """A record as it lies in the archive, or a damaged place.

    Attributes:
        kind: ``WARC-Type``; empty for a damaged place.
        head: version line and fields, with the blank line.
        block: at most one byte more than what was asked for.
        length: ``Content-Length``.
        problem: what is wrong with it, None when nothing is.
        rule: what the report calls that.
    """

    kind: str = ""
    head: bytes = b""
    block: bytes = b""
    length: int = 0
    problem: str | None = None
    rule: str = "read.damaged_record"


class _Frames:
    """Divides an archive into records; after damage it goes on at the next version line.

    Args:
        stream: unpacked bytes.
        maximum_bytes: longer blocks are cut to one byte more.
    """

    def __init__(self, stream: BinaryIO, maximum_bytes: int) -> None:
        self._stream = stream
        self._maximum = maximum_bytes
        self._again = io.BytesIO()  # read a second time: what a wrong Content-Length swallowed

    def __iter__(self) -> Iterator[_Frame]:
        """Records and damaged places.

        Raises:
            TruncatedInput: the archive ends within a header, or its compression is damaged.
        """
        _, line = self._next_line()
        while line:
            if not _VERSION.fullmatch(line):
                line = self._following(line)
                yield _Frame(problem="no record begins here")
                continue
            head = self._head(line)
            fields = {name.lower(): value.decode(errors="replace") for name, value in _FIELD.findall(head)}
            kind, declared = fields.get(b"warc-type", ""), fields.get(b"content-length", "")
            if not (declared.isascii() and declared.isdigit()):
                line = self._following(b"")
                yield _Frame(problem=f"its Content-Length is {declared!r}")
                continue
            frame, line, damage = self._block(kind, head, int(declared))
            yield frame
            if damage is not None:
                raise damage

    def _block(self, kind: str, head: bytes, length: int) -> tuple[_Frame, bytes, TruncatedInput | None]:
        """A record, the line after it, and damage that was met after it."""
        block = self._read(min(length, self._maximum + 1))
        missing = length - len(block) - self._skip(length - len(block))
        blank, line, damage = b"", b"", None
        if missing:
            self._stream.read(1)  # raises where it is the compression that ends
        else:
            try:
                blank, line = self._next_line()
            except TruncatedInput as error:
                damage = error
        if missing or (line and not _VERSION.fullmatch(line)):
            swallowed = block + blank + line
            if (next_record := _NEXT_RECORD.search(swallowed)) is not None:
                self._again = io.BytesIO(swallowed[next_record.start(1) :] + self._again.read())
                problem = f"its Content-Length, {length:,}, reaches into the next record"
                return _Frame(problem=problem), self._line(), damage
            if missing:
                frame = _Frame(problem=f"{missing:,} bytes are missing", rule="read.truncated", block=block)
                return frame, b"", None
            if not blank.startswith((b"\r\n\r\n", b"\n\n")):
                problem = f"its Content-Length, {length:,}, is too small"
                return _Frame(problem=problem), self._following(line), damage
        unknown = None if kind.lower() in _TYPES else f"its WARC-Type is {kind!r}"
        return _Frame(kind.lower(), head, block, length, unknown), line, damage

    def _head(self, line: bytes) -> bytes:
        lines = [line]
        size = len(line)
        while line.strip():
            line = self._line()
            lines.append(line)
            size += len(line)
            if not line.endswith(b"\n") or size > _HEADER_BYTES:
                self._stream.read(1)  # raises where it is the compression that ends
                raise TruncatedInput("the archive ends within the header of a record")
        return b"".join(lines)

    def _following(self, line: bytes) -> bytes:
        """The next version line from ``line`` on; empty at the end."""
        while not _VERSION.fullmatch(line):
            line = self._line()
            if not line:
                self._stream.read(1)  # raises where it is the compression that ends
                return b""
        return line

    def _next_line(self) -> tuple[bytes, bytes]:
        """The beginning of the blank lines, and the line after them; that one is empty at the end."""
        blank = b""
        while (line := self._line()) and not line.strip():
            blank = (blank + line)[:4]
        if not line.endswith(b"\n"):
            self._stream.read(1)  # raises where it is the compression that ends
        return blank, line

    def _line(self) -> bytes:
        line = self._again.readline(_LINE_BYTES)
        if not line.endswith(b"\n") and len(line) < _LINE_BYTES:
            line += self._stream.readline(_LINE_BYTES - len(line))
        return line

    def _read(self, count: int) -> bytes:
        data = self._again.read(count)
        return data + self._stream.read(count - len(data)) if len(data) < count else data

    def _skip(self, count: int) -> int:
        left = count
        while left and (data := self._read(min(left, _SKIP_BYTES))):
            left -= len(data)
        return count - left


RecordReader: TypeAlias = "Callable[[SourceConfig, Any, str, str], Document | BadRecord]"
"""Makes a document of a record parsed by warcio: source, record, its place for people, identifier."""


class ArchiveReader(Reader):
    """Records of one type of an archive.

    Attributes:
        record_type: ``WARC-Type`` of what is read.
    """

    record_type: ClassVar[str]

    def read(self, source: SourceConfig, file: InputFile) -> Records:
        """Records of the wanted type, and damaged places."""
        limit = source.reader.maximum_document_bytes
        with open_stream(file.path) as stream:
            for number, frame in enumerate(_Frames(stream, limit), start=1):
                if file.part is not None and not file.part.has(number):
                    continue
                where = f"{file.name}, record {number}"
                if frame.problem is not None:
                    excerpt = repr(frame.block[:200]) if frame.block else ""
                    yield number, BadRecord(frame.rule, where, frame.problem, excerpt, len(frame.block))
                elif frame.kind != self.record_type:
                    continue
                elif frame.length > limit:
                    detail = f"more than {limit:,} bytes"
                    yield number, BadRecord("read.oversized", where, detail, size_bytes=frame.length)
                else:
                    identifier = f"{source.name}/{file.name}#{number}"
                    yield number, _parsed(self.document, source, frame, where, identifier)

    def document(
        self, source: SourceConfig, record: Any, where: str, identifier: str
    ) -> Document | BadRecord:
        """The document of a record that warcio parsed."""
        raise NotImplementedError

    def divide(self, source: SourceConfig, file: InputFile, count: int, streamed: int) -> Iterator[InputFile]:
        """Every n-th record."""
        return numbered_parts(file, min(-(-count // _PART_FACTOR), streamed))


@READERS.register("warc")
class WarcReader(ArchiveReader):
    """HTML responses with status 2xx."""

    is_markup = True
    record_type = "response"

    def document(
        self, source: SourceConfig, record: Any, where: str, identifier: str
    ) -> Document | BadRecord:
        """The page of a response."""
        return _page_record(source, record, where, identifier)


def _parsed(
    read: RecordReader, source: SourceConfig, frame: _Frame, where: str, identifier: str
) -> Document | BadRecord:
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.recordloader import ArcWarcRecordLoader

    try:
        record = ArcWarcRecordLoader(verify_http=False).parse_record_stream(
            io.BytesIO(frame.head + frame.block), known_format="warc"
        )
        return read(source, record, where, identifier)
    except (ArchiveLoadFailed, EOFError, ValueError, AttributeError, IndexError, TypeError) as error:
        detail = f"warc: {' '.join(str(error).split())}"
        return BadRecord("read.damaged_record", where, detail, repr(frame.block[:200]), len(frame.block))


def record_content(source: SourceConfig, record: Any, where: str) -> bytes | BadRecord:
    """Content of a record, unpacked and not too long."""
    limit = source.reader.maximum_document_bytes
    content: bytes = record.content_stream().read(limit + 1)
    if len(content) > limit:
        return BadRecord("read.oversized", where, f"more than {limit:,} bytes", size_bytes=len(content))
    return content


def _page_record(source: SourceConfig, record: Any, where: str, identifier: str) -> Document | BadRecord:
    headers = record.http_headers
    url = record.rec_headers.get_header("WARC-Target-URI")
    declared = (headers.get_header("Content-Type") or "") if headers is not None else ""
    identified = record.rec_headers.get_header("WARC-Identified-Payload-Type")
    kind = (identified or declared).split(";")[0].strip().lower()
    status = (headers.get_statuscode() if headers is not None else "") or "200"
    if not status.startswith("2"):
        return BadRecord("skipped.http_status", where, f"status {status}", is_bad=False)
    if kind and kind not in _HTML_TYPES:
        return BadRecord("skipped.not_html", where, kind, is_bad=False)
    content = record_content(source, record, where)
    if isinstance(content, BadRecord):
        return content
    packed = (headers.get_header("Content-Encoding") or "") if headers is not None else ""
    if packed.strip().lower() not in _UNPACKED and not _LOOKS_LIKE_HTML.search(content[:2000]):
        # Where a server lied, the page is there to be seen.
        detail = f"Content-Encoding {packed}"
        return BadRecord("read.undecodable", where, detail, repr(content[:200]), len(content))
    if not kind and not _LOOKS_LIKE_HTML.search(content[:2000]):
        return BadRecord("skipped.not_html", where, "no sign of HTML", size_bytes=len(content), is_bad=False)
    try:
        if source.reader.encoding is None:
            text = decode_page(content, content_type=declared, language=source.language)
        else:
            text = decode_text(content, source.reader.encoding)
    except UndecodableInput as error:
        return BadRecord("read.undecodable", where, str(error), repr(content[:200]), len(content))
    return new_document(source, identifier, text, len(content), url=url, date=record_date(record))


def record_date(record: Any) -> str | None:
    """When a record was fetched."""
    value: str | None = record.rec_headers.get_header("WARC-Date")
    return value
