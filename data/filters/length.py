"""``length``: length of the document in characters and letters."""

from __future__ import annotations

import regex
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from pydantic import Field

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, RuleSection

_LETTER = regex.compile(r"\p{L}")


class LengthSection(RuleSection):
    """Length of the document."""

    minimum_characters: int | None = None
    """Least characters."""
    maximum_characters: int | None = None
    """Most characters."""
    minimum_letters: int = Field(default=1, ge=1)
    """Least letters of any script."""


class LengthFilter(BaseFilter):
    """Length in characters and letters."""

    name = "length"

    def __init__(self, section: LengthSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the length is within the limits."""
        section, text = self.section, doc.text
        if section.minimum_characters is not None and len(text) < section.minimum_characters:
            return False, "too_short"
        if section.maximum_characters is not None and len(text) > section.maximum_characters:
            return False, "too_long"
        # The beginning decides for nearly every document.
        beginning = text[: 4 * section.minimum_letters + 200]
        if len(_LETTER.findall(beginning)) < section.minimum_letters and (
            len(beginning) == len(text) or len(_LETTER.findall(text)) < section.minimum_letters
        ):
            return False, "few_letters"
        return True


# Always there: the word rules divide by the number of words.
@FILTERS.register(
    "length",
    section=LengthSection,
    order=20,
    title="Too short or too long",
    default=LengthSection(source="at least one letter"),
)
def make(section: LengthSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return LengthFilter(section, context.writer("length"))
