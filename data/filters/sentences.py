"""``sentences``: sentences and paragraphs, as the Swallow corpus defines them."""

from __future__ import annotations

import re
from collections import Counter

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, Histogram, RuleSection, Share

_SENTENCE = re.compile(r"[^。．！？!?\n]+[。．！？!?]?|[。．！？!?]")


class SentenceSection(RuleSection):
    """Sentences and paragraphs, as the Swallow corpus defines them."""

    duplicate_paragraphs: Share | None = None
    """Most lines that repeat an earlier one, and ..."""
    duplicate_paragraph_characters: Share | None = None
    """... most characters in them."""
    duplicate_sentences: Share | None = None
    """Most sentences that repeat an earlier one, and ..."""
    duplicate_sentence_characters: Share | None = None
    """... most characters in them."""
    minimum_mean_characters: float | None = None
    """Least mean length of a sentence."""
    maximum_mean_characters: float | None = None
    """Most mean length of a sentence."""
    maximum_characters: int | None = None
    """Longest sentence."""
    maximum_ellipsis_share: Share | None = None
    """Most sentences that end in an ellipsis or a middle dot."""


def _repeated(parts: list[str]) -> tuple[float, float]:
    """Share of parts that repeat an earlier one, and share of characters in them."""
    if not parts:
        return 0.0, 0.0
    seen = Counter(parts)
    total = sum(map(len, parts))
    again = len(parts) - len(seen)
    characters = sum(len(part) * (count - 1) for part, count in seen.items())
    return again / len(parts), characters / total if total else 0.0


class SentenceFilter(BaseFilter):
    """Sentences end with ``。．！？!?`` or a newline; paragraphs are the lines that are not blank."""

    name = "sentences"

    def __init__(self, section: SentenceSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether repetition and lengths are within the limits."""
        section = self.section
        paragraphs = [line for line in doc.text.split("\n") if line.strip()]
        sentences = [part for part in _SENTENCE.findall(doc.text) if part.strip()]
        for name, parts, most, most_characters in (
            ("paragraph", paragraphs, section.duplicate_paragraphs, section.duplicate_paragraph_characters),
            ("sentence", sentences, section.duplicate_sentences, section.duplicate_sentence_characters),
        ):
            if most is None and most_characters is None:
                continue
            share, characters = _repeated(parts)
            if most is not None and share > most:
                return False, f"duplicate_{name}s"
            if most_characters is not None and characters > most_characters:
                return False, f"duplicate_{name}_characters"
        if not sentences:
            return False, "none"
        lengths = [len(sentence) for sentence in sentences]
        mean = sum(lengths) / len(lengths)
        self.exclusion_writer.observe("sentence_characters", mean, 10, 200)
        if section.minimum_mean_characters is not None and mean < section.minimum_mean_characters:
            return False, "short"
        if section.maximum_mean_characters is not None and mean > section.maximum_mean_characters:
            return False, "long"
        if section.maximum_characters is not None and max(lengths) > section.maximum_characters:
            return False, "one_too_long"
        if section.maximum_ellipsis_share is not None:
            ended = sum(sentence.rstrip().endswith(("…", "・", "...")) for sentence in sentences)
            if ended / len(sentences) > section.maximum_ellipsis_share:
                return False, "ellipsis"
        return True


@FILTERS.register(
    "sentences",
    section=SentenceSection,
    order=90,
    title="Repeated, very short or very long sentences",
    histograms=(
        Histogram(
            "sentence_characters",
            "Mean characters of a sentence",
            least="minimum_mean_characters",
            most="maximum_mean_characters",
        ),
    ),
)
def make(section: SentenceSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return SentenceFilter(section, context.writer("sentences"))
