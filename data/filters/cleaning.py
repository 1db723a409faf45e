"""``cleaning``: footers and punctuation, before the filters."""

from __future__ import annotations

from collections.abc import Iterator

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, RuleSection


class CleaningSection(RuleSection):
    """Changes of the text before the filters."""

    punctuation_by_majority: bool = False
    """Japanese: where `，．` are more than `、。`, write all of them as `、。`."""
    footer_lines: int = 10
    """How many of the last lines may be a footer."""
    footer_phrases: list[str] = Field(default_factory=list)
    """A line among the last ones with such a phrase ends the document, itself included."""


class Cleaner(PipelineStep):
    """Footers and punctuation, before the filters."""

    name = "cleaning"
    type = "formatter"

    def __init__(self, section: CleaningSection, stats: DocumentStats) -> None:
        super().__init__()
        self.section = section
        self.counts = stats

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Clean each document; one that is all footer is dropped."""
        for document in data:
            text = self.cleaned(document.text)
            if len(text) != len(document.text):
                self.counts.count("footers_trimmed")
            if not text:
                self.counts.drop("cleaning.only_footer", document)
                continue
            document.text = text
            yield document

    def cleaned(self, text: str) -> str:
        """Text without its footer and with Japanese punctuation, as the section says."""
        section = self.section
        if section.footer_phrases:
            lines = text.split("\n")
            for place in range(max(0, len(lines) - section.footer_lines), len(lines)):
                if any(phrase in lines[place] for phrase in section.footer_phrases):
                    text = "\n".join(lines[:place]).rstrip()
                    break
        if section.punctuation_by_majority:
            if text.count("，") > text.count("、"):
                text = text.replace("，", "、")
            if text.count("．") > text.count("。"):
                text = text.replace("．", "。")
        return text


@FILTERS.register(
    "cleaning",
    section=CleaningSection,
    order=10,
    title="Nothing but a footer",
)
def make(section: CleaningSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return Cleaner(section, context.stats)
