"""``character_ngrams``: repetition by character n-grams, as the Swallow corpus defines it."""

from __future__ import annotations

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from pydantic import Field

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import (
    GOPHER_DUPLICATE_NGRAMS,
    GOPHER_TOP_NGRAMS,
    FilterContext,
    RuleSection,
    Share,
)
from tsugiki.experiment.text.rolling_hash import SpanHasher, counted


class CharacterNgramSection(RuleSection):
    """Repetition by character n-grams, as the Swallow corpus defines it."""

    top: dict[int, Share] = Field(default_factory=lambda: dict(GOPHER_TOP_NGRAMS))
    """Most occurrences of the most frequent n-gram among all occurrences, by n."""
    duplicate: dict[int, Share] = Field(default_factory=lambda: dict(GOPHER_DUPLICATE_NGRAMS))
    """Most different n-grams that occur more than once, by n."""


class CharacterNgramFilter(BaseFilter):
    """Repetition by character n-grams, as the Swallow corpus defines it.

    Top n-gram: occurrences of the most frequent one among all occurrences. Duplicate n-grams: how
    many of the different n-grams occur more than once.
    """

    name = "character_ngrams"

    def __init__(self, section: CharacterNgramSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.top = tuple(sorted(section.top.items()))
        self.duplicate = tuple(sorted(section.duplicate.items()))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the shares are within the limits."""
        hasher = SpanHasher(doc.text)
        for n, limit in self.top:
            counts = counted(hasher.windows(n))[1]
            if len(counts) and counts.max() / counts.sum() > limit:
                return False, f"top_{n}"
        for n, limit in self.duplicate:
            counts = counted(hasher.windows(n))[1]
            if len(counts) and np.count_nonzero(counts > 1) / len(counts) > limit:
                return False, f"duplicate_{n}"
        return True


@FILTERS.register(
    "character_ngrams",
    section=CharacterNgramSection,
    order=100,
    title="Repeats itself (character n-grams)",
)
def make(section: CharacterNgramSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return CharacterNgramFilter(section, context.writer("character_ngrams"))
