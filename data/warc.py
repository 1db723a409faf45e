"""Reads WARC (Common Crawl pages) and WET (Common Crawl text) archives.

Unpacking is ours (:mod:`data.streams`), so a truncated archive is noticed; records are parsed by
warcio. Records that are no web pages (requests, images, errors of the server) are counted as
skipped, which is not bad input.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from data.config import SourceConfig
from data.decoding import UndecodableInput, decode_page, decode_text
from data.readers import BadRecord, Records, new_document
from data.sources import InputFile
from data.streams import TruncatedInput, open_stream

if TYPE_CHECKING:
    from datatrove.data import Document

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_DAMAGED = "its Content-Length, or that of the record before it, is wrong"
_LOOKS_LIKE_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body)\b", re.I)


def read_warc(source: SourceConfig, file: InputFile) -> Records:
    """Pages of an archive (``format: warc``) or its text records (``format: wet``).

    Raises:
        TruncatedInput: the archive is cut short or damaged.
        OSError: it cannot be opened.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    class Quiet(ArchiveIterator):
        INC_RECORD = ""  # warcio writes this to stderr; the damage is counted instead

    wanted, read = ("conversion", _text_record) if source.format == "wet" else ("response", _page_record)
    with open_stream(file.path) as stream:
        archive = Quiet(stream)
        try:
            number = 0
            for number, record in enumerate(archive, start=1):
                mine = file.part is None or file.part.has(number)
                where = f"{file.name}, record {number}"
                if mine and record.rec_type == wanted:
                    yield number, read(source, record, where, f"{source.name}/{file.name}#{number}")
                if archive.err_count:  # said of the record before
                    archive.err_count = 0
                    if mine:
                        yield number, BadRecord("read.damaged_record", where, _DAMAGED)
            if archive.err_count and (file.part is None or file.part.has(number)):
                yield number, BadRecord("read.damaged_record", f"{file.name}, record {number}", _DAMAGED)
        except ArchiveLoadFailed as error:
            raise TruncatedInput(f"warc: {' '.join(str(error).split())}") from error
        except (ValueError, AttributeError, IndexError, TypeError) as error:
            # warcio on headers cut in the middle
            raise TruncatedInput(f"warc: {type(error).__name__}: {error}") from error


def _content(source: SourceConfig, record: Any, where: str) -> bytes | BadRecord:
    """Content of a record, complete and not too long."""
    limit = source.reader.maximum_document_bytes
    content: bytes = record.content_stream().read(limit + 1)
    if len(content) > limit:
        return BadRecord("read.oversized", where, f"more than {limit:,} bytes", size_bytes=len(content))
    missing = getattr(record.raw_stream, "limit", 0)
    if missing > 0 and not record.raw_stream.read(1):
        excerpt = repr(content[:200])
        return BadRecord("read.truncated", where, f"{missing:,} bytes are missing", excerpt, len(content))
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
    content = _content(source, record, where)
    if isinstance(content, BadRecord):
        return content
    if not kind and not _LOOKS_LIKE_HTML.search(content[:2000]):
        return BadRecord("skipped.not_html", where, "no sign of HTML", size_bytes=len(content), is_bad=False)
    try:
        if source.reader.encoding is None:
            text = decode_page(content, content_type=declared, language=source.language)
        else:
            text = decode_text(content, source.reader.encoding)
    except UndecodableInput as error:
        return BadRecord("read.undecodable", where, str(error), repr(content[:200]), len(content))
    return new_document(source, identifier, text, len(content), url=url, date=_date(record))


def _text_record(source: SourceConfig, record: Any, where: str, identifier: str) -> Document | BadRecord:
    content = _content(source, record, where)
    if isinstance(content, BadRecord):
        return content
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRecord("read.undecodable", where, str(error), repr(content[:200]), len(content))
    url = record.rec_headers.get_header("WARC-Target-URI")
    return new_document(source, identifier, text, len(content), url=url, date=_date(record))


def _date(record: Any) -> str | None:
    value: str | None = record.rec_headers.get_header("WARC-Date")
    return value
