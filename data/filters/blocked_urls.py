"""``corpus.blocked_urls``: datatrove's blocklists of addresses."""

from __future__ import annotations

from functools import lru_cache

from datatrove.data import Document
from datatrove.pipeline.filters import URLFilter
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.stats import DropWriter


class BlockedUrlFilter(BaseFilter):
    """datatrove's blocklists, for documents that have an address; without looking anything up."""

    name = "blocked_url"

    def __init__(self, writer: DropWriter) -> None:
        super().__init__(writer)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the address is on no list."""
        return _blocklists().filter(doc) if doc.metadata.get("url") else True


@lru_cache(maxsize=1)
def _blocklists() -> URLFilter:
    """The lists, loaded once per process and not once per shard."""
    from tldextract import TLDExtract

    lists = URLFilter()
    # The default would download the list of public suffixes; this is the packaged one.
    lists.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)
    return lists
