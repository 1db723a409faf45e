"""First pass of the corpus: each shard is read, extracted and filtered on its own."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.jsonl_shards import ShardWriter
from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats, DropWriter
from tsugiki.data.common.workspace import KEY_TYPE, Workspace
from tsugiki.data.config import CONVERSATIONS, CorpusConfig, SourceConfig, StepPoint
from tsugiki.data.dedup.line_dedup import LineCounter
from tsugiki.data.filters.base import FilterContext
from tsugiki.data.filters.blocked_urls import BlockedUrlFilter
from tsugiki.data.formatters.extraction import ContentExtractor, Normaliser, Timed
from tsugiki.data.formatters.translation_pairs import PairRenderer
from tsugiki.data.inputs.source_reader import SourceReader
from tsugiki.data.passes.own_steps import steps_after
from tsugiki.data.profiles import Profile, profile_steps, up_to_language
from tsugiki.data.readers.base import reader_of
from tsugiki.experiment.files import atomic_file, write_json_atomically


class FilterShards(PipelineStep):
    """Task ``rank`` reads shard ``rank`` and writes what passes the filters.

    Args:
        config: the corpus section.
        shards: the plan.
        profiles: profile of each source that is filtered, by source name.
        workspace: where results go.
    """

    name = "filter shard"
    type = "corpus"

    def __init__(
        self,
        config: CorpusConfig,
        shards: list[Shard],
        profiles: dict[str, Profile],
        workspace: Workspace,
    ) -> None:
        super().__init__()
        self.config = config
        self.shards = shards
        self.profiles = profiles
        self.workspace = workspace

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Process one shard; yields nothing."""
        shard = self.shards[rank]
        config = self.config
        source = next(item for item in config.sources if item.name == shard.source)
        stats = DocumentStats(config.dropped_samples)
        clock = Timed(stats)
        steps = self.steps(source, shard, stats)
        documents = steps[0].run(None)
        for before, step in pairwise(steps):
            documents = step.run(clock.pulled(documents, _label(before), _label(step)))
        documents = clock.pulled(documents, _label(steps[-1]), "write")
        keys: list[tuple[int, int, int, int, int]] = []
        lines = LineCounter() if config.deduplication.line_dedup.enabled else None
        with ShardWriter(self.workspace.filtered(shard)) as writer:
            for document in documents:
                document.metadata.pop("language_found", None)
                writer.write(document.id, document.text, document.metadata)
                keys.append(document_key(document, config.heldout.salt))
                if lines is not None:
                    lines.add(document)
        clock.finish()
        stats.kept.documents, stats.kept.bytes = writer.documents, writer.bytes
        if source.kind in CONVERSATIONS:  # conversations are not filtered
            stats.extracted.documents, stats.extracted.bytes = writer.documents, writer.bytes
        with atomic_file(self.workspace.keys(shard)) as file:
            np.save(file, np.array(keys, dtype=KEY_TYPE))
        if lines is not None:
            with atomic_file(self.workspace.lines(shard)) as file:
                np.save(file, lines.table())
        write_json_atomically(
            self.workspace.stats("filtered", shard), stats.to_json(), indent=None, errors="replace"
        )
        yield from ()

    def steps(self, source: SourceConfig, shard: Shard, stats: DocumentStats) -> list[PipelineStep]:
        """The datatrove pipeline of a source."""
        config = self.config

        def own(point: StepPoint) -> list[PipelineStep]:
            return steps_after(point, config, shard, len(self.shards), stats)

        steps: list[PipelineStep] = [SourceReader(source, shard, stats, config.on_error), *own("read")]
        if config.blocked_urls:
            steps.append(BlockedUrlFilter(stats.writer("blocked_url")))
        steps += own("urls")
        if source.kind in CONVERSATIONS:
            return steps
        if source.parallel is not None:
            steps.append(PairRenderer(source.language, source.parallel, stats))
        elif reader_of(source).is_markup:
            steps.append(ContentExtractor(source.extraction, stats))
        steps += [Normaliser(stats), *own("extraction")]
        named: list[tuple[str, PipelineStep]] = []
        if (profile := self.profiles.get(source.name)) is not None:
            context = FilterContext(profile, config.language_identification, stats)
            named = profile_steps(context)
        before = up_to_language()
        steps += [step for name, step in named if name in before]
        steps += own("language")
        steps += [step for name, step in named if name not in before]
        return [*steps, *own("quality")]


def _label(step: PipelineStep) -> str:
    """What the report calls a step; datatrove's own names carry pictures."""
    writer = getattr(step, "exclusion_writer", None)
    return writer.step if isinstance(writer, DropWriter) else str(step.name)


def normalised(text: str) -> str:
    """Text for exact comparison: canonical composition, lower case, whitespace as single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def document_key(document: Document, salt: str) -> tuple[int, int, int, int, int]:
    """One row of :data:`KEY_TYPE`."""
    content = document.text
    if not content and "messages" in document.metadata:
        content = orjson.dumps(
            [*document.metadata["messages"], *document.metadata.get("rejected", ())]
        ).decode()
    text = normalised(content).encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    # Both directions of a translation pair are held out together or not at all.
    chosen_by = str(document.metadata["pair"]).encode() if "pair" in document.metadata else text
    heldout = hashlib.blake2b(chosen_by, digest_size=8, key=salt.encode()[:64]).digest()
    url = document.metadata.get("url")
    address = hashlib.blake2b(url.encode(errors="replace"), digest_size=8).digest() if url else bytes(8)
    return (
        int.from_bytes(digest[:8], "little"),
        int.from_bytes(digest[8:], "little"),
        int.from_bytes(address, "little"),
        int.from_bytes(heldout, "little"),
        len(content.encode()),
    )
