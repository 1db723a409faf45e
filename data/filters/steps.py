"""The filters of a profile: datatrove's where it has them, ours for what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import FineWebQualityFilter, URLFilter
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.segmentation import tokenizer_for
from tsugiki.data.common.stats import DropWriter, Ledger
from tsugiki.data.filters.gopher_quality import FastQualityFilter
from tsugiki.data.filters.gopher_repetition import CharacterNgramFilter, FastRepetitionFilter
from tsugiki.data.filters.heuristics import (
    BannedWordFilter,
    CharacterFilter,
    Cleaner,
    DiversityFilter,
    JapaneseFilter,
    LengthFilter,
    SentenceFilter,
    StopWordFilter,
)
from tsugiki.data.filters.language import LanguageFilter
from tsugiki.data.filters.profiles import LengthSection, Profile


class BlockedUrlFilter(BaseFilter):
    """datatrove's blocklists, for documents that have an address; without looking anything up."""

    name = "blocked_url"

    def __init__(self, writer: DropWriter) -> None:
        super().__init__(writer)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the address is on no list."""
        return _blocklists().filter(doc) if doc.metadata.get("url") else True


@lru_cache(maxsize=1)
def _blocklists() -> URLFilter:
    """The lists, loaded once per process and not once per shard."""
    from tldextract import TLDExtract

    lists = URLFilter()
    # The default would download the list of public suffixes; this is the packaged one.
    lists.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)
    return lists


def build_filters(
    profile: Profile, ledger: Ledger, *, identify: bool, minimum_score: float | None, model: str | None
) -> list[PipelineStep]:
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
    steps: list[PipelineStep] = []
    if profile.cleaning is not None:
        steps.append(Cleaner(profile.cleaning, ledger))
    steps.append(LengthFilter(length, ledger.writer("length")))
    if identify and (section := profile.language_identification) is not None:
        own = section.minimum_share if model is None else section.minimum_probability
        steps.append(
            LanguageFilter(
                profile.language,
                [profile.language, *section.accept],
                own if minimum_score is None else minimum_score,
                model,
                section.confusable,
                ledger.writer("language"),
            )
        )
    if profile.characters is not None:
        steps.append(CharacterFilter(profile.characters, profile.scripts, ledger.writer("characters")))
    bounded = profile.segmentation == "words"
    if profile.japanese is not None:
        steps.append(JapaneseFilter(profile.japanese, ledger.writer("japanese")))
    if profile.banned_words is not None:
        steps.append(BannedWordFilter(profile.banned_words, bounded, ledger.writer("banned_words")))
    if profile.stop_words is not None:
        steps.append(StopWordFilter(profile.stop_words, bounded, ledger.writer("stop_words")))
    if profile.diversity is not None:
        steps.append(DiversityFilter(profile.diversity, ledger.writer("diversity")))
    if profile.sentences is not None:
        steps.append(SentenceFilter(profile.sentences, ledger.writer("sentences")))
    if profile.character_ngrams is not None:
        ngrams = CharacterNgramFilter(profile.character_ngrams, ledger.writer("character_ngrams"))
        steps.append(ngrams)
    words, units = tokenizer_for(profile.segmentation), profile.units_per_word
    if (repetition := profile.repetition) is not None:
        steps.append(
            FastRepetitionFilter(
                dup_line_frac=repetition.duplicate_line_share,
                dup_para_frac=repetition.duplicate_paragraph_share,
                dup_line_char_frac=repetition.duplicate_line_characters,
                dup_para_char_frac=repetition.duplicate_paragraph_characters,
                top_n_grams=_scaled(repetition.top_ngrams, units),
                dup_n_grams=_scaled(repetition.duplicate_ngrams, units),
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
                new_line_ratio=fineweb.maximum_newlines_per_word / units,
                language=words,
            )
        )
    if (gopher := profile.gopher) is not None:
        steps.append(
            FastQualityFilter(
                min_doc_words=_times(gopher.minimum_words, units),
                max_doc_words=_times(gopher.maximum_words, units),
                min_avg_word_length=_times(gopher.minimum_word_length, 1 / units),
                max_avg_word_length=_times(gopher.maximum_word_length, 1 / units),
                max_symbol_word_ratio=_times(gopher.maximum_symbol_share, 1 / units),
                max_bullet_lines_ratio=gopher.maximum_bullet_lines,
                max_ellipsis_lines_ratio=gopher.maximum_ellipsis_lines,
                max_non_alpha_words_ratio=gopher.minimum_alphabetic_words,
                min_stop_words=None,  # a section of its own: see StopWordFilter
                exclusion_writer=ledger.writer("gopher"),
                language=words,
            )
        )
    return steps


def _scaled(limits: Mapping[int, float], units: float) -> tuple[tuple[int, float], ...]:
    """Limits by n in words as limits by n in units of the segmentation."""
    return tuple((max(1, round(n * units)), limit) for n, limit in sorted(limits.items()))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
