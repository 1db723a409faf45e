"""Last pass of the corpus: drop duplicates, split off the held-out documents, write the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashDedupFilter

from tsugiki.data.common.jsonl_shards import ShardWriter, read_documents
from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import Ledger
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig
from tsugiki.data.dedup.decontamination import Decontaminator
from tsugiki.data.dedup.duplicates import ExactFilter, Groups, places
from tsugiki.data.dedup.lines import BoilerplateRemover
from tsugiki.data.formatters.pii import PiiMasker
from tsugiki.experiment.files import write_json_atomically

_LENGTH_EDGES = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


class FinaliseShards(PipelineStep):
    """Task ``rank`` writes shard ``rank`` of the corpus.

    Args:
        config: the corpus section.
        shards: the plan.
        groups: shards that were deduplicated together.
        minhash_groups: those among them that went through MinHash.
        workspace: intermediate files.
        output_dir: the corpus directory.
    """

    name = "write shard"
    type = "corpus"

    def __init__(
        self,
        config: CorpusConfig,
        shards: list[Shard],
        groups: Groups,
        minhash_groups: Groups,
        workspace: Workspace,
        output_dir: Path,
    ) -> None:
        super().__init__()
        self.config = config
        self.shards = shards
        self.place = places(groups)
        self.minhash_groups = set(minhash_groups)
        self.workspace = workspace
        self.output_dir = output_dir

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write one shard; yields nothing."""
        shard = self.shards[rank]
        ledger = Ledger(self.config.dropped_samples)
        heldout = set(np.load(self.workspace.heldout(shard)).tolist())
        train_path, heldout_path = shard_paths(self.output_dir, shard)
        exact = ExactFilter(self.workspace, shard, ledger)
        documents = exact.run(self._numbered(shard))
        if self.config.deduplication.boilerplate.enabled:
            documents = BoilerplateRemover(self.workspace, shard.source, ledger).run(documents)
        group, number = self.place[shard.rank]
        if group in self.minhash_groups:
            near = MinhashDedupFilter(
                str(self.workspace.minhash(group, "clusters")),
                ledger.writer("duplicate.near"),
                load_cluster_sizes=(
                    self.workspace.minhash(group, "clusters") / f"{number:06d}.sizes"
                ).exists(),
                lines_to_buffer=1000,
            )
            documents = near.run(documents, number)
        documents = _not_empty(documents, ledger)
        if self.config.decontamination.paths:
            documents = Decontaminator(self.config.decontamination, ledger).run(documents)
        if self.config.pii.enabled:
            source = next(item for item in self.config.sources if item.name == shard.source)
            documents = PiiMasker(source.language, self.config.pii.kinds, ledger).run(documents)
        with ShardWriter(train_path) as train, ShardWriter(heldout_path) as held:
            for document in documents:
                position = document.metadata.pop("_position")
                cluster = document.metadata.pop("minhash_cluster_size", 1)
                ledger.observe("cluster_size", _bin(cluster, (1, 2, 4, 9, 49, 499)))
                ledger.observe("characters", _bin(len(document.text), _LENGTH_EDGES))
                writer = held if position in heldout else train
                writer.write(document.id, document.text, document.metadata)
        ledger.kept.documents = train.documents + held.documents
        ledger.kept.bytes = train.bytes + held.bytes
        ledger.count("train_documents", train.documents)
        ledger.count("train_bytes", train.bytes)
        ledger.count("heldout_documents", held.documents)
        ledger.count("heldout_bytes", held.bytes)
        write_json_atomically(
            self.workspace.ledger("final", shard), ledger.to_json(), indent=None, errors="replace"
        )
        yield from ()

    def _numbered(self, shard: Shard) -> Iterator[Document]:
        for position, document in enumerate(read_documents(self.workspace.filtered(shard))):
            document.metadata["_position"] = position
            yield document


def _not_empty(documents: Iterator[Document], ledger: Ledger) -> Iterator[Document]:
    """Without what boilerplate removal emptied."""
    for document in documents:
        if document.text or "messages" in document.metadata:
            yield document
        else:
            ledger.drop("boilerplate.nothing_left", document)


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
