"""Documents of a language that are repeated, by the hash of their text or address.

The first document in the order of sources, shards and positions stays, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from tsugiki.data.common.shard import Shard
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig
from tsugiki.data.dedup.verdicts import VERDICT_TYPE, Verdict, save

_KEYS_IN_MEMORY = 8_000_000

Groups = dict[str, list[Shard]]


def places(groups: Groups) -> dict[int, tuple[str, int]]:
    """Group of each shard and its number within it, by the shard's rank."""
    return {
        shard.rank: (group, number)
        for group, members in groups.items()
        for number, shard in enumerate(members)
    }


class FindExactDuplicates(PipelineStep):
    """Task ``rank`` finds the repeated texts and addresses of group ``rank``.

    Hashes are compared one range at a time, so memory stays bounded however large the group is.
    """

    name = "exact duplicates"
    type = "corpus"

    def __init__(self, config: CorpusConfig, groups: Groups, workspace: Workspace) -> None:
        super().__init__()
        self.config = config
        self.groups = groups
        self.workspace = workspace

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the verdicts of each shard of the group; yields nothing."""
        shards = self.groups[sorted(self.groups)[rank]]
        keys = [np.load(self.workspace.keys(shard), mmap_mode="r") for shard in shards]
        texts = urls = [np.empty(0, np.int64) for _ in shards]
        if self.config.deduplication.exact:
            texts = repeated(keys, ("text_high", "text_low"))
        if self.config.deduplication.url:
            urls = repeated(keys, ("url",), ignore_zero=True)
        for shard, key, by_text, by_url in zip(shards, keys, texts, urls, strict=True):
            verdicts = np.zeros(len(key), VERDICT_TYPE)
            verdicts["cluster_size"] = 1
            verdicts["verdict"][by_url] = Verdict.REPEATED_URL
            verdicts["verdict"][by_text] = Verdict.REPEATED_TEXT  # the first rule that applies
            save(self.workspace.verdicts("exact", shard), verdicts)
        yield from ()


def repeated(
    keys: list[NDArray[np.void]],
    fields: tuple[str, ...],
    *,
    ignore_zero: bool = False,
    keys_in_memory: int = _KEYS_IN_MEMORY,
) -> list[NDArray[np.int64]]:
    """Positions, per array, of records whose fields occurred before (earlier array or position).

    Args:
        keys: arrays of :data:`~tsugiki.data.common.workspace.KEY_TYPE`.
        fields: fields that must all agree.
        ignore_zero: records whose first field is 0 are never repeated.
        keys_in_memory: records compared at a time.
    """
    total = sum(len(array) for array in keys)
    ranges = max(1, -(-total // keys_in_memory))
    found: list[list[NDArray[np.int64]]] = [[] for _ in keys]
    first = fields[0]
    for part in range(ranges):
        low, high = (part << 64) // ranges, ((part + 1) << 64) // ranges - 1
        rows: list[NDArray[np.void]] = []
        places: list[NDArray[np.int64]] = []
        for number, array in enumerate(keys):
            column = array[first]
            inside = (column >= np.uint64(low)) & (column <= np.uint64(high))
            if ignore_zero:
                inside &= column != 0
            position = np.flatnonzero(inside)
            rows.append(array[list(fields)][position])
            places.append(np.stack([np.full(len(position), number), position], axis=1))
        columns = np.concatenate(rows)
        place = np.concatenate(places)  # [records, 2]: array, position; ascending
        order = np.lexsort([columns[field] for field in reversed(fields)])  # stable: first stays first
        ordered = columns[order]
        again = np.zeros(len(ordered), bool)
        if len(ordered) > 1:
            again[1:] = np.logical_and.reduce([ordered[field][1:] == ordered[field][:-1] for field in fields])
        hits = place[order[again]]
        for number in range(len(keys)):
            found[number].append(hits[hits[:, 0] == number, 1])
    return [np.sort(np.concatenate(parts)).astype(np.int64) for parts in found]
