"""``fineweb``: datatrove's FineWebQualityFilter, line structure."""

from __future__ import annotations

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import FineWebQualityFilter

from tsugiki.data.common.segmentation import tokenizer_for
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, RuleSection, Share


class FinewebSection(RuleSection):
    """datatrove's FineWebQualityFilter."""

    minimum_punctuated_lines: Share = 0.12
    """Least lines that end in punctuation."""
    no_punctuation_is_fine: bool = False
    """Do not apply it to documents without any end punctuation (Thai, Lao)."""
    maximum_short_lines: Share = 0.67
    """Most short lines."""
    short_line_characters: int = 30
    """What a short line is."""
    maximum_duplicate_characters: Share = 0.01
    """Most characters in repeated lines."""
    maximum_newlines_per_word: float = 0.3
    """Most newlines per word."""


@FILTERS.register(
    "fineweb",
    section=FinewebSection,
    order=120,
    title="Line structure unlike running text",
)
def make(section: FinewebSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return FineWebQualityFilter(
        context.writer("fineweb"),
        line_punct_thr=section.minimum_punctuated_lines,
        line_punct_exclude_zero=section.no_punctuation_is_fine,
        short_line_thr=section.maximum_short_lines,
        short_line_length=section.short_line_characters,
        char_duplicates_ratio=section.maximum_duplicate_characters,
        new_line_ratio=section.maximum_newlines_per_word / context.profile.units_per_word,
        language=tokenizer_for(context.profile.segmentation),
    )
