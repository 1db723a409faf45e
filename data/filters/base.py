"""What the sections of quality profiles and their filters share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import regex
from pydantic import Field, model_validator

from tsugiki.data.common.segmentation import Segmentation
from tsugiki.data.common.stats import DocumentStats, DropWriter
from tsugiki.data.config import Language, LanguageIdentificationConfig
from tsugiki.data.filters import FILTERS
from tsugiki.experiment.config.registry import Entry
from tsugiki.experiment.config.strict import StrictModel

GOPHER_TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
GOPHER_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Table A1 of Gopher (arXiv 2112.11446)."""

LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]+")

Share = Annotated[float, Field(ge=0, le=1)]


class RuleSection(StrictModel):
    """Common to all sections."""

    source: str | dict[str, str]
    """Where the thresholds come from: one text, or one per threshold (`default` for the others)."""

    @model_validator(mode="after")
    def _every_threshold_has_a_source(self) -> Self:
        if isinstance(self.source, dict):
            given = self.model_fields_set - {"source"}
            unknown = set(self.source) - set(type(self).model_fields) - {"default"}
            if unknown:
                raise ValueError(f"sources of existing thresholds, not of {', '.join(sorted(unknown))}")
            missing = given - set(self.source) if "default" not in self.source else set()
            if missing:
                raise ValueError(f"a source for {', '.join(sorted(missing))}, or `default`")
        return self

    def resolved(self, profile: Path) -> Self:
        """The section with what it names in other files, paths relative to its profile.

        Raises:
            ConfigError: a file cannot be read.
        """
        return self


class ProfileHead(StrictModel):
    """What a profile says before its sections."""

    language: Language
    """Language the profile is for."""
    scripts: list[str]
    """Scripts the language is written in, as `regex` names them (`Han`, `Hiragana`, `Latin`)."""
    segmentation: Segmentation = "words"
    """How text is cut for the filters: see `data/common/segmentation.py`."""
    units_per_word: float = Field(default=1.0, gt=0)
    """Units of the segmentation in a word. Thresholds are written for words, as published, and
    scaled by this: n of n-grams and numbers of words up, lengths of words down."""

    if TYPE_CHECKING:

        def __getattr__(self, section: str) -> Any:
            """The sections are fields; which there are is known when all of them are registered."""


@dataclass(frozen=True)
class Histogram:
    """Scores that a filter observes, as the report shows them.

    Attributes:
        name: what ``exclusion_writer.observe`` is told.
        title: of the chart.
        least: field of the section with the least score that passes.
        most: field of the section with the largest one.
    """

    name: str
    title: str
    least: str | None = None
    most: str | None = None


@dataclass(frozen=True)
class FilterContext:
    """What a filter may know besides its own section.

    Attributes:
        profile: languages, scripts and segmentation.
        identification: how languages are identified.
        stats: counts of the shard.
    """

    profile: ProfileHead
    identification: LanguageIdentificationConfig
    stats: DocumentStats

    def writer(self, rule: str) -> DropWriter:
        """The ``exclusion_writer`` of a filter: what it drops is counted as ``<rule>.<reason>``."""
        return self.stats.writer(rule)


def ordered_filters() -> Sequence[Entry[Any]]:
    """The registered sections in the order of their steps."""
    return sorted(map(FILTERS.entry, FILTERS.names()), key=lambda entry: (entry.facts["order"], entry.name))


def rule_of(entry: Entry[Any]) -> str:
    """What the names of a section's rules begin with in the report."""
    rule: str = entry.facts.get("rule", entry.name)
    return rule


def characters_in(pattern: Any, text: str) -> int:
    """Characters of a text in matches of a pattern of `regex`."""
    return sum(map(len, pattern.findall(text)))


def times(value: float | None, factor: float) -> float | None:
    """A threshold for words as one for units of the segmentation."""
    return None if value is None else value * factor
