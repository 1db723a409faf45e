"""The filters of a profile: datatrove's where it has them, ours for what it lacks."""

from __future__ import annotations

from functools import cache

import regex
from datatrove.data import Document
from datatrove.pipeline.filters import (
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    URLFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter

from data.language import LanguageFilter
from data.ledger import DropWriter, Ledger
from data.profiles import CharacterSection, LengthSection, Profile
from data.segmentation import tokenizer_for

_LETTER = regex.compile(r"\p{L}")
_DIGIT = regex.compile(r"\p{Nd}")
_SYMBOL = regex.compile(r"[^\p{L}\p{M}\p{Nd}\s]")
_HIRAGANA = regex.compile(r"\p{Hiragana}")
_KATAKANA = regex.compile(r"[\p{Katakana}ー]")
_JAPANESE = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Han}ー々]")


def _occurrences(pattern: regex.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))


@cache
def _script_pattern(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    classes = "".join(f"\\p{{{script}}}" for script in scripts)
    return regex.compile(f"(?=\\p{{L}})[{classes}ー々]")


class BlockedUrlFilter(URLFilter):
    """datatrove's blocklists, for documents that have an address; without looking anything up."""

    name = "blocked_url"

    def __init__(self, writer: DropWriter) -> None:
        from tldextract import TLDExtract

        super().__init__(exclusion_writer=writer)
        # The default would download the list of public suffixes; this is the packaged one.
        self.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        """Whether the address is on no list."""
        return super().filter(document) if document.metadata.get("url") else True


class LengthFilter(BaseFilter):
    """Length in characters and letters."""

    name = "length"

    def __init__(self, section: LengthSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the length is within the limits."""
        section = self.section
        length = len(doc.text)
        if section.minimum_characters is not None and length < section.minimum_characters:
            return False, "too_short"
        if section.maximum_characters is not None and length > section.maximum_characters:
            return False, "too_long"
        if _occurrences(_LETTER, doc.text) < section.minimum_letters:
            return False, "few_letters"
        return True


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
            letters = _occurrences(_LETTER, text)
            own = _occurrences(_script_pattern(self.scripts), text)
            if own < (section.minimum_script_letters or 0):
                return False, "few_script_letters"
            if own < (section.minimum_script_share or 0) * letters or not letters:
                return False, "other_script"
        visible = sum(map(len, text.split())) or 1
        limit = section.maximum_digit_share
        if limit is not None and _occurrences(_DIGIT, text) / visible > limit:
            return False, "digits"
        limit = section.maximum_symbol_share
        if limit is not None and _occurrences(_SYMBOL, text) / visible > limit:
            return False, "symbols"
        if section.minimum_hiragana_share is not None or section.maximum_katakana_share is not None:
            japanese = _occurrences(_JAPANESE, text) or 1
            if _occurrences(_HIRAGANA, text) / japanese < (section.minimum_hiragana_share or 0):
                return False, "little_hiragana"
            limit = section.maximum_katakana_share
            if limit is not None and _occurrences(_KATAKANA, text) / japanese > limit:
                return False, "much_katakana"
        return True


def build_filters(
    profile: Profile, ledger: Ledger, *, identify: bool, minimum_score: float | None, model: str | None
) -> list[BaseFilter]:
    """The steps of a profile, cheap ones first.

    Args:
        profile: the profile.
        ledger: receives what is dropped.
        identify: whether languages are identified at all.
        minimum_score: overrides the profile's threshold.
        model: fastText model, None for the packaged one.
    """
    # Always there: the word rules divide by the number of words.
    length = profile.length or LengthSection(source="at least one letter")
    steps: list[BaseFilter] = [LengthFilter(length, ledger.writer("length"))]
    if identify and (section := profile.language_identification) is not None:
        own = section.minimum_share if model is None else section.minimum_probability
        steps.append(
            LanguageFilter(
                profile.language, [profile.language, *section.accept],
                own if minimum_score is None else minimum_score, model, ledger.writer("language"),
            )
        )
    if profile.characters is not None:
        steps.append(CharacterFilter(profile.characters, profile.scripts, ledger.writer("characters")))
    words = tokenizer_for(profile.segmentation)
    if (repetition := profile.repetition) is not None:
        steps.append(
            GopherRepetitionFilter(
                dup_line_frac=repetition.duplicate_line_share,
                dup_para_frac=repetition.duplicate_paragraph_share,
                dup_line_char_frac=repetition.duplicate_line_characters,
                dup_para_char_frac=repetition.duplicate_paragraph_characters,
                top_n_grams=tuple(sorted(repetition.top_ngrams.items())),
                dup_n_grams=tuple(sorted(repetition.duplicate_ngrams.items())),
                exclusion_writer=ledger.writer("repetition"),
                language=words,
            )
        )
    if (fineweb := profile.fineweb) is not None:
        steps.append(
            FineWebQualityFilter(
                ledger.writer("fineweb"),
                line_punct_thr=fineweb.minimum_punctuated_lines,
                line_punct_exclude_zero=fineweb.no_punctuation_is_fine,
                short_line_thr=fineweb.maximum_short_lines,
                short_line_length=fineweb.short_line_characters,
                char_duplicates_ratio=fineweb.maximum_duplicate_characters,
                new_line_ratio=fineweb.maximum_newlines_per_word,
                language=words,
            )
        )
    if (gopher := profile.gopher) is not None:
        steps.append(
            GopherQualityFilter(
                min_doc_words=gopher.minimum_words,
                max_doc_words=gopher.maximum_words,
                min_avg_word_length=gopher.minimum_word_length,
                max_avg_word_length=gopher.maximum_word_length,
                max_symbol_word_ratio=gopher.maximum_symbol_share,
                max_bullet_lines_ratio=gopher.maximum_bullet_lines,
                max_ellipsis_lines_ratio=gopher.maximum_ellipsis_lines,
                max_non_alpha_words_ratio=gopher.minimum_alphabetic_words,
                min_stop_words=gopher.minimum_stop_words,
                stop_words=gopher.stop_words,
                exclusion_writer=ledger.writer("gopher"),
                language=words,
            )
        )
    return steps


__all__ = ["BlockedUrlFilter", "CharacterFilter", "LengthFilter", "build_filters"]
