"""Renders translation pairs into training text, in both directions."""

from __future__ import annotations

from collections.abc import Iterator

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import ParallelConfig
from tsugiki.data.formatters.extraction import normalise


class PairRenderer(PipelineStep):
    """Turns each pair into one document per direction, one after the other.

    Args:
        language: language of the first side.
        config: template and language of the other side.
        stats: counts pairs with an empty or identical side.
    """

    name = "render"
    type = "formatter"

    def __init__(self, language: str, config: ParallelConfig, stats: DocumentStats) -> None:
        super().__init__()
        self.language = language
        self.config = config
        self.counts = stats

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Render; pairs that teach nothing are dropped."""
        for document in data:
            first, second = (normalise(text) for text in document.metadata.pop("pair"))
            document.text = f"{first}\n{second}"
            if not first or not second:
                self.counts.drop("pair.empty_side", document)
                continue
            if first == second:
                self.counts.drop("pair.identical_sides", document)
                continue
            languages = (self.language, self.config.target_language)
            yield self._rendered(document, (first, second), languages, "")
            if self.config.both_directions:
                yield self._rendered(document, (second, first), languages[::-1], "/reverse")

    def _rendered(
        self, document: Document, texts: tuple[str, str], languages: tuple[str, str], suffix: str
    ) -> Document:
        # Not str.format: the texts and the template may hold other braces.
        text = self.config.template
        text = text.replace("{source_language}", languages[0]).replace("{target_language}", languages[1])
        before, _, after = text.partition("{source}")
        rendered = before.replace("{target}", texts[1]) + texts[0] + after.replace("{target}", texts[1])
        metadata = document.metadata | {"pair": document.id}
        return Document(text=rendered, id=document.id + suffix, metadata=metadata)
