"""``format: html``: a page a file."""

from __future__ import annotations

from tsugiki.data.common.charset import decode_page, decode_text
from tsugiki.data.common.shard import InputFile
from tsugiki.data.config import SourceConfig
from tsugiki.data.readers import READERS
from tsugiki.data.readers.base import Reader, Records
from tsugiki.data.readers.whole import read_whole


@READERS.register("html")
class HtmlReader(Reader):
    """Pages, one a file; decoded as browsers do, or by ``reader.encoding``."""

    is_markup = True

    def read(self, source: SourceConfig, file: InputFile) -> Records:
        """The page."""
        encoding = source.reader.encoding

        def decode(data: bytes) -> str:
            if encoding is None:
                return decode_page(data, language=source.language)
            return decode_text(data, encoding, source.language)

        return read_whole(source, file, decode)

    def has_one_document_per_file(self, source: SourceConfig) -> bool:
        """Always."""
        return True
