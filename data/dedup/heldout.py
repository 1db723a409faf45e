"""Which documents are held out: those with the smallest hashes of their text.

The hash is of the text alone, so the same documents are held out whatever the tokenizer, the
order of the files or the number of workers; adding a source leaves the others' choice alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from tsugiki.data.common.shard import Shard
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig, HeldoutConfig
from tsugiki.data.dedup.exact import Groups, places
from tsugiki.data.dedup.minhash import apply_clusters
from tsugiki.data.dedup.verdicts import Verdict, save


def heldout_count(documents: int, config: HeldoutConfig) -> int:
    """How many documents of a source are held out.

    ``fraction`` of them, rounded, at least one and at most ``maximum_documents``; never the last
    document, none with ``fraction: 0``.
    """
    if config.fraction == 0 or documents < 2:
        return 0
    count = max(1, round(documents * config.fraction))
    if config.maximum_documents is not None:
        count = min(count, config.maximum_documents)
    return min(count, documents - 1)


class SelectHeldout(PipelineStep):
    """Task ``rank`` chooses the held-out documents of source ``rank``."""

    name = "held-out documents"
    type = "corpus"

    def __init__(
        self, config: CorpusConfig, shards: list[Shard], groups: Groups, workspace: Workspace
    ) -> None:
        super().__init__()
        self.config = config
        self.shards = shards
        self.place = places(groups)
        self.workspace = workspace

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the last verdicts of each shard; yields nothing."""
        name = self.config.sources[rank].name
        shards = [shard for shard in self.shards if shard.source == name]
        verdicts = [self._after_deduplication(shard) for shard in shards]
        survivors = [np.flatnonzero(rows["verdict"] == Verdict.TRAIN) for rows in verdicts]
        wanted = heldout_count(sum(map(len, survivors)), self.config.heldout)
        hashes = [
            np.load(self.workspace.keys(shard), mmap_mode="r")["heldout"][positions]
            for shard, positions in zip(shards, survivors, strict=True)
        ]
        limit = _nth_smallest(hashes, wanted)
        for shard, rows, positions, values in zip(shards, verdicts, survivors, hashes, strict=True):
            if wanted:
                rows["verdict"][positions[values <= limit]] = Verdict.HELDOUT
            save(self.workspace.verdicts("heldout", shard), rows)
        yield from ()

    def _after_deduplication(self, shard: Shard) -> NDArray[np.void]:
        verdicts: NDArray[np.void] = np.load(self.workspace.verdicts("exact", shard))
        group, number = self.place[shard.rank]
        apply_clusters(self.workspace.minhash(group, "clusters"), number, verdicts)
        return verdicts


def _nth_smallest(hashes: list[NDArray[np.uint64]], count: int) -> np.uint64:
    """The ``count``-th smallest of all values, holding at most ``count`` per array in memory."""
    if count == 0:
        return np.uint64(0)
    smallest = np.empty(0, np.uint64)
    for values in hashes:
        merged = np.concatenate([smallest, values])
        smallest = np.partition(merged, count - 1)[:count] if len(merged) > count else merged
    return np.uint64(smallest.max())
