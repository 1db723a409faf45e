"""``stop_words``: words any running text of the language has."""

from __future__ import annotations

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import (
    LETTER_OR_MARK,
    FilterContext,
    Histogram,
    RuleSection,
    Share,
    characters_in,
)
from tsugiki.data.filters.word_patterns import word_pattern


class StopWordSection(RuleSection):
    """Words any running text of the language has."""

    words: list[str]
    """The words; in languages without spaces they count wherever they occur."""
    minimum_different: int | None = None
    """Least different ones in a document."""
    minimum_share: Share | None = None
    """Least characters in them among letters and marks."""


class StopWordFilter(BaseFilter):
    """Stop words, by number and by share.

    Args:
        section: the words and limits.
        bounded: words stand between spaces or punctuation.
        writer: receives what is dropped.
    """

    name = "stop_words"

    def __init__(self, section: StopWordSection, bounded: bool, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section
        self.bounded = bounded

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether there are enough."""
        section = self.section
        pattern = word_pattern(tuple(section.words), self.bounded)
        if section.minimum_share is not None:
            found = pattern.findall(doc.text)
            share = sum(map(len, found)) / max(1, characters_in(LETTER_OR_MARK, doc.text))
            self.exclusion_writer.observe("stop_word_share", share)
            if share < section.minimum_share:
                return False, "few"
            different = {word.lower() for word in found}
        else:
            different = set()
            for match in pattern.finditer(doc.text):
                different.add(match[0].lower())
                if len(different) >= (section.minimum_different or 0):
                    break
        if len(different) < (section.minimum_different or 0):
            return False, "few_different"
        return True


@FILTERS.register(
    "stop_words",
    section=StopWordSection,
    order=70,
    title="Few function words",
    histograms=(Histogram("stop_word_share", "Stop words", least="minimum_share"),),
)
def make(section: StopWordSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    bounded = context.profile.segmentation == "words"
    return StopWordFilter(section, bounded, context.writer("stop_words"))
