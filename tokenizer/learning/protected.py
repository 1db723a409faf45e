"""Text that must not change: what it holds, and the pieces that would change it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.merge import neighbour_concatenations
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.config import ExtendConfig
from tsugiki.tokenizer.learning.candidates import LatinGuard
from tsugiki.tokenizer.learning.text import CorpusText
from tsugiki.tokenizer.learning.word_lists import default_list, load_word_list

_PROTECTED_FREQUENCY = 1e-6
"""Words that are rarer in a protected language are not looked for: a list of them is mostly names."""
_WORD = re.compile(r"[^\W\d_]{2,}")


def forbidden_pieces(
    extend: ExtendConfig,
    base: BaseTokenizer,
    corpus: CorpusText,
    every: ScriptRule,
    small_words: Mapping[str, Mapping[str, int]],
) -> set[str]:
    """Pieces that would change protected text."""
    texts = protected_texts(extend, corpus, every.is_foreign)
    words = protected_words(extend, small_words)
    return neighbour_concatenations(base.exact_processor(), chain(texts, words), every.is_foreign)


def protected_texts(
    extend: ExtendConfig, corpus: CorpusText, is_foreign: Callable[[str], bool]
) -> Iterator[str]:
    """Protected text, training and held-out, without what it quotes in a target language.

    A line that holds characters of a target language is meant to change; its words in other than ASCII ("Hà"
    beside "Nội") are left out.
    """
    held_out = (line for lines in corpus.protected(extend).values() for line in lines)
    for text in chain(corpus.protected_training(extend), held_out):
        if not is_foreign(text):
            yield text
            continue
        lines = text.split("\n")
        yield "\n".join(
            " ".join(filter(str.isascii, line.split(" "))) if is_foreign(line) else line for line in lines
        )


def protected_words(extend: ExtendConfig, small_words: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Words that the protected languages use at large: protected text that the corpus need not hold.

    A list of English words holds those of other languages that English texts quote, so a word counts only
    where English has it more often than the target languages, by their lists, or by the sample of a language
    without a list.

    Args:
        extend: configuration.
        small_words: how often each word in small letters occurs in a target language's sample.

    Returns:
        Each word in small letters and with a capital; nothing with ``protect_unseen: false``.
    """
    if not extend.protect_unseen:
        return []
    elsewhere: dict[str, float] = {}
    for language in extend.languages:
        frequencies = load_word_list(language, default_list(language))
        if not frequencies:
            sample = small_words.get(language, {})
            total = max(sum(sample.values()), 1)
            frequencies = {word: n / total for word, n in sample.items() if n >= extend.minimum_count}
        for word, frequency in frequencies.items():
            elsewhere[word] = max(elsewhere.get(word, 0.0), frequency)
    found: dict[str, None] = {}
    for language in extend.protect:
        for word, frequency in load_word_list(language, default_list(language)).items():
            if frequency >= max(_PROTECTED_FREQUENCY, elsewhere.get(word, 0.0)):
                found |= dict.fromkeys((word, word.capitalize()))
    return list(found)


def latin_guard(
    extend: ExtendConfig,
    corpus: CorpusText,
    small_words: Mapping[str, Mapping[str, int]],
    is_foreign: Callable[[str], bool],
) -> LatinGuard | None:
    """A :class:`~tsugiki.tokenizer.learning.candidates.LatinGuard` for the words of a corpus, if one is wanted.

    Args:
        extend: configuration.
        corpus: gives the protected text.
        small_words: how often each word in small letters occurs in a target language's sample.
        is_foreign: whether a text holds characters of a target language only.
    """
    if not (extend.protect and extend.protect_unseen):
        return None
    protected: set[str] = set()
    for text in protected_texts(extend, corpus, is_foreign):
        protected.update(_WORD.findall(text))
    common = (
        word
        for counter in small_words.values()
        for word, count in counter.items()
        if count >= extend.minimum_count
    )
    return LatinGuard(protected, common)


def count_small_words(runs: Mapping[str, int]) -> Counter[str]:
    """How often each Latin word that is written in small letters occurs."""
    found: Counter[str] = Counter()
    for run, count in runs.items():
        if run.lstrip()[:1].isalpha() and any("LATIN" in unicodedata.name(c, "") for c in run.strip()[:1]):
            for word in run.split():
                if word.islower():
                    found[word] += count
    return found
