"""``diversity``: different characters, entropy and compressibility."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, Histogram, RuleSection, Share


class DiversitySection(RuleSection):
    """How much a document says for its length."""

    minimum_unique_characters: Share | None = None
    """Least different characters among all; falls with length, so only for short texts."""
    unique_up_to_characters: int = 1000
    """The share of different characters is taken over at most this many."""
    minimum_entropy_bits: float | None = None
    """Least entropy of the characters."""
    minimum_compression: Share | None = None
    """Least zlib-9 size divided by size in UTF-8."""
    maximum_compression: float | None = None
    """Most zlib-9 size divided by size in UTF-8."""


class DiversityFilter(BaseFilter):
    """Different characters, entropy and compressibility."""

    name = "diversity"

    def __init__(self, section: DiversitySection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the text is neither too monotonous nor noise."""
        section, text = self.section, doc.text
        if section.minimum_unique_characters is not None:
            beginning = text[: section.unique_up_to_characters]
            if len(set(beginning)) / len(beginning) < section.minimum_unique_characters:
                return False, "few_characters"
        if section.minimum_entropy_bits is not None:
            entropy = entropy_bits(text)
            self.exclusion_writer.observe("entropy_bits", entropy, 0.5, 12)
            if entropy < section.minimum_entropy_bits:
                return False, "entropy"
        if section.minimum_compression is not None or section.maximum_compression is not None:
            data = text.encode()
            ratio = len(zlib.compress(data, 9)) / len(data)
            self.exclusion_writer.observe("compression", ratio)
            if ratio < (section.minimum_compression or 0):
                return False, "compresses_well"
            if section.maximum_compression is not None and ratio > section.maximum_compression:
                return False, "compresses_badly"
        return True


def entropy_bits(text: str) -> float:
    """Entropy of the characters of a text in bits per character."""
    counts = np.fromiter(Counter(text).values(), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@FILTERS.register(
    "diversity",
    section=DiversitySection,
    order=80,
    title="Says little for its length, or is noise",
    histograms=(
        Histogram("entropy_bits", "Entropy, bits per character", least="minimum_entropy_bits"),
        Histogram("compression", "Compressed size", least="minimum_compression", most="maximum_compression"),
    ),
)
def make(section: DiversitySection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return DiversityFilter(section, context.writer("diversity"))
