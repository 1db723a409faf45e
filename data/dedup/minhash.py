"""MinHash: near-duplicates within a language, datatrove's four stages over what exact deduplication leaves."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import DataFolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig, simplify_text
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from tsugiki.data.common.jsonl_shards import read_documents
from tsugiki.data.common.segmentation import Segmentation, tokenizer_for
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig, MinhashSettings
from tsugiki.data.dedup.exact import Groups
from tsugiki.data.dedup.line_dedup import LineDedup
from tsugiki.data.dedup.verdicts import EXACT, Verdict, marked, without
from tsugiki.experiment.text.rolling_hash import SpanHasher, word_bounds


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


class _Folder(DataFolder):
    """A local folder whatever its path: datatrove's own globs below it, and fsspec reads ``::`` and ``://`` as URLs."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path.absolute()), LocalFileSystem())

    def list_files(
        self,
        subdirectory: str = "",
        recursive: bool = True,
        glob_pattern: str | None = None,
        include_directories: bool = False,
    ) -> list[str]:
        """Files in the order of their names; a pattern means their own names, not the folder's."""
        found: list[str] = super().list_files(subdirectory, recursive, None, include_directories)
        return [name for name in found if glob_pattern is None or fnmatchcase(name, glob_pattern)]


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
            _Folder(self.workspace.minhash(group, "signatures")),
            minhash_config(self.config.deduplication.minhash, units_per_word),
            language=tokenizer_for(segmentation),
        )
        verdicts = self.workspace.verdicts("exact", shard)
        documents = without(marked(read_documents(self.workspace.filtered(shard)), verdicts), EXACT)
        if self.config.deduplication.line_dedup.enabled:
            documents = LineDedup(self.workspace, shard.source).run(documents)
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
            _Folder(self.workspace.minhash(group, "signatures")),
            _Folder(self.workspace.minhash(group, "buckets")),
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
            _Folder(self.workspace.minhash(group, "buckets")),
            _Folder(self.workspace.minhash(group, "clusters")),
            config=minhash_config(self.settings),
            save_cluster_size=True,
            lines_to_buffer=1000,
        )
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            cluster.run(None, 0, 1)
        yield from ()


def apply_clusters(clusters: Path, number: int, verdicts: NDArray[np.void]) -> None:
    """Set the verdicts of near-duplicates, and the sizes of clusters.

    Args:
        clusters: where :class:`Clusters` wrote; numbers there count the exact-unique documents.
        number: of the shard in its group.
        verdicts: of the shard, with the exact duplicates; changed in place.
    """
    removed, sizes = (clusters / f"{number:06d}.{ending}" for ending in ("remove", "sizes"))
    unique = np.flatnonzero(verdicts["verdict"] == Verdict.TRAIN)
    if removed.exists():
        verdicts["verdict"][unique[np.fromfile(removed, "<u4")]] = Verdict.NEAR_DUPLICATE
    if sizes.exists():
        places, counts = np.fromfile(sizes, "<u4").reshape(-1, 2).T
        verdicts["cluster_size"][unique[places]] = counts
