"""Deduplication between the documents of a language: exact by hash, near by MinHash.

The first document in the order of sources, shards and positions stays, whatever the number of
workers. MinHash is datatrove's four stages over the documents that exact deduplication leaves.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig, simplify_text
from numpy.typing import NDArray

from tsugiki.data.common.jsonl_shards import read_documents
from tsugiki.data.common.segmentation import Segmentation, tokenizer_for
from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import Ledger
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig, MinhashSettings
from tsugiki.data.dedup.lines import BoilerplateRemover
from tsugiki.experiment.files import atomic_file
from tsugiki.experiment.text.rolling_hash import SpanHasher, word_bounds

_KEYS_IN_MEMORY = 8_000_000

Groups = dict[str, list[Shard]]


def places(groups: Groups) -> dict[int, tuple[str, int]]:
    """Group of each shard and its number within it, by the shard's rank."""
    return {
        shard.rank: (group, number)
        for group, members in groups.items()
        for number, shard in enumerate(members)
    }


def minhash_config(settings: MinhashSettings, units_per_word: float = 1.0) -> MinhashConfig:
    """datatrove's configuration.

    Diacritics stay: stripping combining marks would delete the vowels of Thai, Khmer and Burmese
    and turn Japanese ``が`` into ``か``. 64-bit hashes as FineWeb-2.
    """
    return MinhashConfig(
        n_grams=max(1, round(settings.ngram_words * units_per_word)),
        num_buckets=settings.buckets,
        hashes_per_bucket=settings.hashes_per_bucket,
        norm_config=TextNormConfig(norm_unicode_diacritics=False),
        hash_config=HashConfig(precision=64),
    )


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
        """Write the positions to drop for each shard of the group; yields nothing."""
        shards = self.groups[sorted(self.groups)[rank]]
        keys = [np.load(self.workspace.keys(shard), mmap_mode="r") for shard in shards]
        texts = urls = [np.empty(0, np.int64) for _ in shards]
        if self.config.deduplication.exact:
            texts = repeated(keys, ("text_high", "text_low"))
        if self.config.deduplication.url:
            urls = repeated(keys, ("url",), ignore_zero=True)
        for shard, by_text, by_url in zip(shards, texts, urls, strict=True):
            with atomic_file(self.workspace.exact(shard)) as file:
                np.savez(file, text=by_text, url=np.setdiff1d(by_url, by_text))
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


class ExactFilter(PipelineStep):
    """Documents of a shard without its exact duplicates.

    Args:
        workspace: where :class:`FindExactDuplicates` wrote.
        shard: the shard.
        ledger: counts the duplicates; None counts nothing.
    """

    name = "duplicate"
    type = "corpus"

    def __init__(self, workspace: Workspace, shard: Shard, ledger: Ledger | None = None) -> None:
        super().__init__()
        self.workspace = workspace
        self.shard = shard
        self.ledger = ledger

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Pass on what is not a duplicate."""
        with np.load(self.workspace.exact(self.shard)) as saved:
            texts, urls = set(saved["text"].tolist()), set(saved["url"].tolist())
        for position, document in enumerate(data):
            if position not in texts and position not in urls:
                yield document
            elif self.ledger is not None:
                self.ledger.drop("duplicate.text" if position in texts else "duplicate.url", document)


class FastSignature(MinhashDedupSignature):
    """datatrove's stage 1 with shingles hashed in numpy and the modulus taken by shifts.

    Same signatures' statistics, other hash function: do not mix with signatures made by datatrove.
    """

    _ROWS = 512  # shingles at a time: 512 x 112 hashes of 8 bytes stay in the cache

    def get_shingles(self, text: str) -> NDArray[np.uint64]:
        """Hashes of the word n-grams of the simplified text; shape [n-grams, 1]."""
        words = self.word_tokenizer.word_tokenize(simplify_text(text, self.config.norm_config))
        n = self.config.n_grams
        if len(words) < n:
            return np.empty((0, 1), np.uint64)
        starts, ends = word_bounds(words, gap=1)
        hashes = SpanHasher(" ".join(words)).spans(starts[: len(words) - n + 1], ends[n - 1 :])
        return np.unique(hashes).reshape(-1, 1)

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        """Minimum of every hash function over the shingles, bucket by bucket.

        (s a + b) mod p with p = 2^61 - 1: since 2^61 = 1 mod p, a 64-bit value v is congruent to
        (v >> 61) + (v & p), which is below 2p, so one subtraction is left.
        """
        a, b = self.parameters
        prime, shift = np.uint64((1 << 61) - 1), np.uint64(61)
        smallest = np.full(self.num_hashes, prime)
        for start in range(0, len(shingles), self._ROWS):
            values = shingles[start : start + self._ROWS] * a  # [rows, hashes]
            values += b
            folded = (values >> shift) + (values & prime)
            np.subtract(folded, prime, out=folded, where=folded >= prime)
            np.minimum(smallest, folded.min(axis=0), out=smallest)
        return [part.tolist() for part in np.split(smallest, self.config.num_buckets)]


class Signatures(PipelineStep):
    """MinHash stage 1: task ``rank`` signs shard ``rank`` of all groups, in order."""

    name = "minhash signatures"
    type = "corpus"

    def __init__(
        self,
        config: CorpusConfig,
        groups: Groups,
        segmentations: dict[str, tuple[Segmentation, float]],
        workspace: Workspace,
    ) -> None:
        super().__init__()
        self.config = config
        self.tasks = [
            (group, number, shard) for group in sorted(groups) for number, shard in enumerate(groups[group])
        ]
        self.segmentations = segmentations
        self.workspace = workspace

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Sign one shard; yields nothing."""
        group, number, shard = self.tasks[rank]
        segmentation, units_per_word = self.segmentations[group]
        signature = FastSignature(
            str(self.workspace.minhash(group, "signatures")),
            minhash_config(self.config.deduplication.minhash, units_per_word),
            language=tokenizer_for(segmentation),
        )
        unique = ExactFilter(self.workspace, shard)
        documents = unique.run(read_documents(self.workspace.filtered(shard)))
        if self.config.deduplication.boilerplate.enabled:
            documents = BoilerplateRemover(self.workspace, shard.source).run(documents)
        signature.run(documents, number)
        yield from ()


class Buckets(PipelineStep):
    """MinHash stage 2: a task is one bucket of one group, or all of them where the text is little.

    Args:
        config: the corpus section.
        groups: what is deduplicated together.
        workspace: intermediate files.
        together: one task per group.
    """

    name = "minhash buckets"
    type = "corpus"

    def __init__(self, config: CorpusConfig, groups: Groups, workspace: Workspace, together: bool) -> None:
        super().__init__()
        self.settings = config.deduplication.minhash
        self.workspace = workspace
        everything = list(range(self.settings.buckets))
        self.tasks: list[tuple[str, list[int]]] = [
            (group, buckets)
            for group in sorted(groups)
            for buckets in ([everything] if together else [[bucket] for bucket in everything])
        ]

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Find equal signatures in buckets; yields nothing."""
        group, buckets = self.tasks[rank]
        step = MinhashDedupBuckets(
            str(self.workspace.minhash(group, "signatures")),
            str(self.workspace.minhash(group, "buckets")),
            config=minhash_config(self.settings),
            lines_to_buffer=1000,
        )
        for bucket in buckets:
            step.run(None, bucket, self.settings.buckets)
        yield from ()


class Clusters(PipelineStep):
    """MinHash stage 3: task ``rank`` clusters group ``rank``."""

    name = "minhash clusters"
    type = "corpus"

    def __init__(self, config: CorpusConfig, groups: Groups, workspace: Workspace) -> None:
        super().__init__()
        self.settings = config.deduplication.minhash
        self.groups = sorted(groups)
        self.workspace = workspace

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Join the pairs of all buckets into clusters; yields nothing."""
        group = self.groups[rank]
        cluster = MinhashDedupCluster(
            str(self.workspace.minhash(group, "buckets")),
            str(self.workspace.minhash(group, "clusters")),
            config=minhash_config(self.settings),
            save_cluster_size=True,
            lines_to_buffer=1000,
        )
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            cluster.run(None, 0, 1)
        yield from ()


def removed_by_minhash(clusters: Path, number: int) -> NDArray[np.int64]:
    """Positions, among the exact-unique documents of a shard, that clustering removes."""
    path = clusters / f"{number:06d}.remove"
    if not path.exists():
        return np.empty(0, np.int64)
    return np.fromfile(path, dtype="<u4").astype(np.int64)


__all__ = [
    "Buckets",
    "Clusters",
    "ExactFilter",
    "FindExactDuplicates",
    "Signatures",
    "minhash_config",
    "places",
    "removed_by_minhash",
    "repeated",
]
