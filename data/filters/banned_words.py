"""``banned_words``: words of pages nobody wants."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from pydantic import Field

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import LETTER_OR_MARK, FilterContext, RuleSection, Share, characters_in
from tsugiki.data.filters.word_patterns import word_pattern
from tsugiki.experiment.errors import ConfigError


class BannedWordSection(RuleSection):
    """Words of pages nobody wants."""

    words: list[str] = Field(default_factory=list)
    """The words, found as they are written, in any case."""
    files: list[str] = Field(default_factory=list)
    """Further lists in the profile's folder, a word a line, e.g. those of LDNOOBW that C4 used; lines
    that begin with `#` are left out."""
    maximum_share: Share = 0.05
    """Most characters in them among letters and marks."""

    def resolved(self, profile: Path) -> Self:
        """The section with the words of its files among its own."""
        words = list(self.words)
        for name in self.files:
            try:
                lines = (profile.parent / name).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    "cannot read a list of banned words",
                    where=f"{profile}: banned_words.files",
                    got=f"{profile.parent / name}: {error}",
                    expected="a UTF-8 file with a word a line, beside the profile",
                ) from error
            words += [word for line in lines if (word := line.strip()) and not word.startswith("#")]
        if not words:
            raise ConfigError(
                "banned_words without a word",
                where=f"{profile}: banned_words",
                expected="`words` or `files`",
            )
        return self.model_copy(update={"words": list(dict.fromkeys(words)), "files": []})


class BannedWordFilter(BaseFilter):
    """Share of characters in banned words."""

    name = "banned_words"

    def __init__(self, section: BannedWordSection, bounded: bool, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section
        self.bounded = bounded

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether there are few enough."""
        found = characters_in(word_pattern(tuple(self.section.words), self.bounded), doc.text)
        if not found:
            return True
        share = found / max(1, characters_in(LETTER_OR_MARK, doc.text))
        return True if share <= self.section.maximum_share else (False, "share")


@FILTERS.register(
    "banned_words",
    section=BannedWordSection,
    order=60,
    title="Many words of pages nobody wants",
)
def make(section: BannedWordSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    bounded = context.profile.segmentation == "words"
    return BannedWordFilter(section, bounded, context.writer("banned_words"))
