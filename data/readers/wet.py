"""``format: wet``: the text archives of Common Crawl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import BadRecord, new_document
from tsugiki.data.readers.warc import ArchiveReader, record_content, record_date

if TYPE_CHECKING:
    from datatrove.data import Document


@READERS.register("wet")
class WetReader(ArchiveReader):
    """Text records."""

    record_type = "conversion"

    def document(
        self, source: SourceConfig, record: Any, where: str, identifier: str
    ) -> Document | BadRecord:
        """The text of a record."""
        content = record_content(source, record, where)
        if isinstance(content, BadRecord):
            return content
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            return BadRecord("read.undecodable", where, str(error), repr(content[:200]), len(content))
        url = record.rec_headers.get_header("WARC-Target-URI")
        return new_document(source, identifier, text, len(content), url=url, date=record_date(record))
