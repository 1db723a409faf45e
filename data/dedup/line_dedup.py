"""Removes lines that many documents of one host share: menus, disclaimers, footers.

Each shard counts in how many documents of a host a line occurs; the counts are added up over all
shards of a source, one range of hosts at a time; lines that reach the limits are removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import urlsplit

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig, LineDedupConfig
from tsugiki.experiment.files import atomic_file

LINE_TYPE = np.dtype([("host", "<u8"), ("line", "<u8"), ("documents", "<u4")])
"""Documents of a host that contain a line; ``line`` 0 counts all documents of the host."""

_ROWS_IN_MEMORY = 20_000_000


@lru_cache(maxsize=4096)
def host_hash(url: str | None) -> int:
    """64-bit hash of the host of an address; documents without one share a host."""
    try:
        host = (urlsplit(url).hostname or "") if url else ""
    except ValueError:
        host = ""
    return _hash(host.lower().removeprefix("www."))


def line_hash(line: str) -> int:
    """64-bit hash of a line without the space around it; never 0."""
    return _hash(" ".join(line.split())) or 1


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class LineCounter:
    """Counts the lines of a shard by host: 20 bytes for each different one of the shard.

    Args:
        counts_in_memory: lines counted in a Python dictionary (about 200 bytes each) at a time.
    """

    def __init__(self, counts_in_memory: int = 200_000) -> None:
        self._counts: dict[tuple[int, int], int] = {}
        self._limit = counts_in_memory
        self._table = np.empty(0, LINE_TYPE)

    def add(self, document: Document) -> None:
        """Count each different line of a document once."""
        host = host_hash(document.metadata.get("url"))
        lines = {line_hash(line) for line in document.text.split("\n") if line.strip()}
        for line in (0, *lines):
            key = (host, line)
            self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._counts) > self._limit:
            self.table()

    def table(self) -> NDArray[np.void]:
        """Rows of :data:`LINE_TYPE`, sorted."""
        rows = np.fromiter(
            ((*key, count) for key, count in self._counts.items()), LINE_TYPE, len(self._counts)
        )
        self._counts = {}
        self._table = _added_up(np.concatenate([self._table, rows]))
        return self._table


def _added_up(rows: NDArray[np.void]) -> NDArray[np.void]:
    """One row for each line of a host, sorted."""
    rows = rows[np.lexsort((rows["line"], rows["host"]))]
    new = np.ones(len(rows), bool)
    new[1:] = (rows["host"][1:] != rows["host"][:-1]) | (rows["line"][1:] != rows["line"][:-1])
    starts = np.flatnonzero(new)
    merged = rows[starts].copy()
    if len(rows):
        merged["documents"] = np.add.reduceat(rows["documents"], starts)
    return merged


class FindRepeatedLines(PipelineStep):
    """Task ``rank`` finds the repeated lines of source ``rank``."""

    name = "repeated lines"
    type = "corpus"

    def __init__(self, config: CorpusConfig, shards: list[Shard], workspace: Workspace) -> None:
        super().__init__()
        self.config = config
        self.shards = shards
        self.workspace = workspace

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the (host, line) pairs to remove; yields nothing."""
        name = self.config.sources[rank].name
        tables = [
            np.load(self.workspace.lines(shard), mmap_mode="r")
            for shard in self.shards
            if shard.source == name
        ]
        found = repeated_lines(tables, self.config.deduplication.line_dedup)
        with atomic_file(self.workspace.repeated_lines(name)) as file:
            np.save(file, found)
        yield from ()


def repeated_lines(
    tables: list[NDArray[np.void]], config: LineDedupConfig, rows_in_memory: int = _ROWS_IN_MEMORY
) -> NDArray[np.void]:
    """Lines in at least ``minimum_documents`` and ``minimum_share`` of the documents of a host.

    Args:
        tables: sorted counts of the shards.
        config: the limits.
        rows_in_memory: rows added up at a time.

    Returns:
        Rows of :data:`LINE_TYPE`, sorted, of the lines to remove.
    """
    ranges = max(1, -(-sum(map(len, tables)) // rows_in_memory))
    found: list[NDArray[np.void]] = []
    for part in range(ranges):
        low, high = (part << 64) // ranges, ((part + 1) << 64) // ranges - 1
        pieces = []
        for table in tables:
            start = np.searchsorted(table["host"], np.uint64(low), side="left")
            end = np.searchsorted(table["host"], np.uint64(high), side="right")
            pieces.append(table[start:end])
        rows = np.concatenate(pieces)
        if not len(rows):
            continue
        merged = _added_up(rows)
        totals = merged[merged["line"] == 0]  # one row per host, in the order of hosts
        total = totals["documents"][np.searchsorted(totals["host"], merged["host"])]
        often = (merged["documents"] >= config.minimum_documents) & (
            merged["documents"] >= config.minimum_share * total
        )
        found.append(merged[often & (merged["line"] != 0)])
    return np.concatenate(found) if found else np.empty(0, LINE_TYPE)


class LineDedup(PipelineStep):
    """Removes the lines that :class:`FindRepeatedLines` found.

    Documents that are left empty pass through, so that positions stay what they were.

    Args:
        workspace: intermediate files.
        source: name of the source.
        stats: counts removed lines and bytes; None counts nothing.
    """

    name = "line dedup"
    type = "formatter"

    def __init__(self, workspace: Workspace, source: str, stats: DocumentStats | None = None) -> None:
        super().__init__()
        self.workspace = workspace
        self.source = source
        self.counts = stats

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents with the repeated lines cut out."""
        rows = np.load(self.workspace.repeated_lines(self.source))
        known = set(zip(rows["host"].tolist(), rows["line"].tolist(), strict=True))
        for document in data:
            if known:
                self._clean(document, known)
            yield document

    def _clean(self, document: Document, known: set[tuple[int, int]]) -> None:
        host = host_hash(document.metadata.get("url"))
        lines = document.text.split("\n")
        kept = [line for line in lines if not line.strip() or (host, line_hash(line)) not in known]
        if len(kept) == len(lines):
            return
        text = "\n".join(kept).strip()
        if self.counts is not None:
            self.counts.count("removed_lines", len(lines) - len(kept))
            removed = len(document.text.encode()) - len(text.encode())
            self.counts.count("removed_line_bytes", removed)
        document.text = text
