"""``japanese``: Japanese letters as the Swallow corpus counts them."""

from __future__ import annotations

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, Histogram, RuleSection, Share


class JapaneseSection(RuleSection):
    """Japanese letters (kana, kanji and punctuation), as the Swallow corpus counts them."""

    minimum_letters: int | None = None
    """Least Japanese letters."""
    minimum_share: Share | None = None
    """Least Japanese letters among all characters."""
    minimum_hiragana: Share | None = None
    """Least hiragana among Japanese letters."""
    maximum_katakana: Share | None = None
    """Most katakana among Japanese letters."""


class JapaneseFilter(BaseFilter):
    """Japanese letters as the Swallow corpus counts them.

    Hiragana U+3041-3096, katakana U+30A1-30FA, kanji, ``、，`` and ``。．！？``; shares are of all
    characters of the text.
    """

    name = "japanese"

    def __init__(self, section: JapaneseSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether counts and shares are within the limits."""
        section = self.section
        codes = np.frombuffer(doc.text.encode("utf-32-le"), "<u4")
        hiragana = int(np.count_nonzero((codes >= 0x3041) & (codes <= 0x3096)))
        katakana = int(np.count_nonzero((codes >= 0x30A1) & (codes <= 0x30FA)))
        kanji = int(
            np.count_nonzero(
                ((codes >= 0x3400) & (codes <= 0x9FFF))
                | ((codes >= 0xF900) & (codes <= 0xFAFF))
                | ((codes >= 0x20000) & (codes <= 0x3FFFF))
                | np.isin(codes, (0x3005, 0x3007, 0x303B))
            )
        )
        marks = int(np.count_nonzero(np.isin(codes, [ord(sign) for sign in "、，。．！？"])))
        japanese = hiragana + katakana + kanji + marks
        self.exclusion_writer.observe("japanese_share", japanese / max(1, len(codes)))
        self.exclusion_writer.observe("hiragana_share", hiragana / max(1, japanese))
        if japanese < (section.minimum_letters or 0):
            return False, "few_letters"
        if japanese < (section.minimum_share or 0) * len(codes):
            return False, "little_japanese"
        if hiragana < (section.minimum_hiragana or 0) * japanese:
            return False, "little_hiragana"
        if section.maximum_katakana is not None and katakana > section.maximum_katakana * japanese:
            return False, "much_katakana"
        return True


@FILTERS.register(
    "japanese",
    section=JapaneseSection,
    order=50,
    title="Few Japanese letters",
    histograms=(
        Histogram("japanese_share", "Japanese letters and marks", least="minimum_share"),
        Histogram("hiragana_share", "Hiragana among them", least="minimum_hiragana"),
    ),
)
def make(section: JapaneseSection, context: FilterContext) -> PipelineStep:
    """The step of a profile."""
    return JapaneseFilter(section, context.writer("japanese"))
