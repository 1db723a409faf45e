"""Last pass of the corpus: drop duplicates, split off the held-out documents, write the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.jsonl_shards import ShardWriter, read_documents
from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig
from tsugiki.data.dedup.decontamination import Decontaminator
from tsugiki.data.dedup.line_dedup import LineDedup
from tsugiki.data.dedup.verdicts import EXACT, Verdict, marked, without
from tsugiki.data.formatters.pii import PiiMasker
from tsugiki.experiment.files import write_json_atomically

_LENGTH_EDGES = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


class FinaliseShards(PipelineStep):
    """Task ``rank`` writes shard ``rank`` of the corpus.

    Args:
        config: the corpus section.
        shards: the plan.
        workspace: intermediate files.
        output_dir: the corpus directory.
    """

    name = "write shard"
    type = "corpus"

    def __init__(
        self,
        config: CorpusConfig,
        shards: list[Shard],
        workspace: Workspace,
        output_dir: Path,
    ) -> None:
        super().__init__()
        self.config = config
        self.shards = shards
        self.workspace = workspace
        self.output_dir = output_dir

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write one shard; yields nothing."""
        shard = self.shards[rank]
        stats = DocumentStats(self.config.dropped_samples)
        verdicts = self.workspace.verdicts("heldout", shard)
        train_path, heldout_path = shard_paths(self.output_dir, shard)
        documents = without(marked(read_documents(self.workspace.filtered(shard)), verdicts), EXACT, stats)
        if self.config.deduplication.line_dedup.enabled:
            documents = LineDedup(self.workspace, shard.source, stats).run(documents)
        documents = without(documents, (Verdict.NEAR_DUPLICATE,), stats)
        documents = _not_empty(documents, stats)
        if self.config.decontamination.paths:
            documents = Decontaminator(self.config.decontamination, stats).run(documents)
        if self.config.pii.enabled:
            source = next(item for item in self.config.sources if item.name == shard.source)
            documents = PiiMasker(source.language, self.config.pii.kinds, stats).run(documents)
        with ShardWriter(train_path) as train, ShardWriter(heldout_path) as held:
            for document in documents:
                verdict = document.metadata.pop("_verdict")
                cluster_size = document.metadata.pop("_cluster_size")
                stats.observe("cluster_size", _bin(cluster_size, (1, 2, 4, 9, 49, 499)))
                stats.observe("characters", _bin(len(document.text), _LENGTH_EDGES))
                writer = held if verdict == Verdict.HELDOUT else train
                writer.write(document.id, document.text, document.metadata)
        stats.kept.documents = train.documents + held.documents
        stats.kept.bytes = train.bytes + held.bytes
        stats.count("train_documents", train.documents)
        stats.count("train_bytes", train.bytes)
        stats.count("heldout_documents", held.documents)
        stats.count("heldout_bytes", held.bytes)
        write_json_atomically(
            self.workspace.stats("final", shard), stats.to_json(), indent=None, errors="replace"
        )
        yield from ()


def _not_empty(documents: Iterator[Document], stats: DocumentStats) -> Iterator[Document]:
    """Without what line deduplication emptied."""
    for document in documents:
        if document.text or "messages" in document.metadata:
            yield document
        else:
            stats.drop("line_dedup.nothing_left", document)


def shard_paths(output_dir: Path, shard: Shard) -> tuple[Path, Path]:
    """Files of a shard of the corpus: training and held-out."""
    folder = output_dir / shard.source
    return folder / f"{shard.number:05d}.jsonl.zst", folder / f"heldout-{shard.number:05d}.jsonl.zst"


def _bin(value: int, edges: tuple[int, ...]) -> str:
    """Label of the first edge that is not below the value, zero-padded so that labels sort."""
    for edge in edges:
        if value <= edge:
            return f"<= {edge:07d}"
    return f"> {edges[-1]:07d}"
