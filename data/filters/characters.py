"""``characters``: shares of scripts, digits and symbols."""

from __future__ import annotations

from functools import cache

import regex
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

_DIGIT = regex.compile(r"\p{Nd}+")
_SYMBOL = regex.compile(r"[^\p{L}\p{M}\p{Nd}\s]+")


class CharacterSection(RuleSection):
    """Shares of characters."""

    minimum_script_share: Share | None = None
    """Least share of the letters in the language's own scripts."""
    minimum_script_letters: int | None = None
    """Least letters in the language's own scripts."""
    maximum_digit_share: Share | None = None
    """Most digits among the characters that are not spaces."""
    maximum_symbol_share: Share | None = None
    """Most characters that are neither letters, marks, digits nor spaces."""


@cache
def _script_pattern(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    classes = "".join(f"\\p{{{script}}}" for script in scripts)
    # The long vowel sign and the iteration mark belong to no single script.
    common = "ー々" if "Han" in scripts else ""
    return regex.compile(f"[{classes}{common}]+")


class CharacterFilter(BaseFilter):
    """Shares of scripts, digits and symbols."""

    name = "characters"

    def __init__(self, section: CharacterSection, scripts: list[str], writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section
        self.scripts = tuple(scripts)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the shares are within the limits."""
        section, text = self.section, doc.text
        if section.minimum_script_share is not None or section.minimum_script_letters is not None:
            letters = characters_in(LETTER_OR_MARK, text)
            own = characters_in(_script_pattern(self.scripts), text)
            self.exclusion_writer.observe("script_share", own / max(1, letters))
            if own < (section.minimum_script_letters or 0):
                return False, "few_script_letters"
            if own < (section.minimum_script_share or 0) * letters or not letters:
                return False, "other_script"
        if section.maximum_digit_share is None and section.maximum_symbol_share is None:
            return True
        visible = sum(map(len, text.split())) or 1
        for name, pattern, limit in (
            ("digit", _DIGIT, section.maximum_digit_share),
            ("symbol", _SYMBOL, section.maximum_symbol_share),
        ):
            if limit is not None:
                share = characters_in(pattern, text) / visible
                self.exclusion_writer.observe(f"{name}_share", share)
                if share > limit:
                    return False, f"{name}s"
        return True


@FILTERS.register(
    "characters",
    section=CharacterSection,
    order=40,
    title="Few characters of the language, many digits or symbols",
    histograms=(
        Histogram("script_share", "Letters in the language's script", least="minimum_script_share"),
        Histogram("digit_share", "Digits", most="maximum_digit_share"),
        Histogram("symbol_share", "Symbols", most="maximum_symbol_share"),
    ),
)
def make(section: CharacterSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return CharacterFilter(section, context.profile.scripts, context.writer("characters"))
