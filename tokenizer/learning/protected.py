"""Text that must not change: what it holds, and the pieces that would change it."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.merge import neighbour_concatenations
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.config import ExtendConfig
from tsugiki.tokenizer.learning.candidates import LatinGuard
from tsugiki.tokenizer.learning.text import CorpusText
from tsugiki.tokenizer.learning.word_lists import default_list, load_word_list

_PROTECTED_FREQUENCY = 1e-6
"""Words that a protected language has more often than this, and the target languages less often, never change."""
_LARGEST_RISK = 3e-7
"""Share of the words of unseen protected text that a piece may change; docs/tokenizer.md has what others cost."""
_UNSEEN_WORD = 2e-8
"""What a word of the list counts for beyond its frequency: about 250,000 names and rare words in it stand for the half
per cent of words that no list has."""
_QUOTED = 30.0
"""A word that a target language has so many times as often is no word of the protected one but quoted in it."""
_FORMS = ((" {}", str, 0.5), (" {}", str.capitalize, 0.25), ("{}", str, 0.25))
"""How a word stands in text (after a space, with a capital, after a bracket or hyphen) and how much that counts."""
_ENCODED_TOGETHER = 5000
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
    processor = base.exact_processor()
    found = neighbour_concatenations(processor, chain(texts, words), every.is_foreign)
    return found | pieces_of_unseen_words(
        extend, every, small_words, lambda texts: processor.encode(texts, out_type=str)
    )


def pieces_of_unseen_words(
    extend: ExtendConfig,
    every: ScriptRule,
    small_words: Mapping[str, Mapping[str, int]],
    encode: Callable[[list[str]], Iterable[list[str]]],
) -> set[str]:
    """Pieces that would change too much of protected text that the stage has not seen.

    A piece changes a word in which it is the concatenation of two neighbouring base tokens. What it would change of
    the words that the language uses at large, names among them, weighted by their frequencies, must stay below
    :data:`_LARGEST_RISK`; and a whole word that the protected language has more often than the target languages is no
    piece, however rare (technical terms that both quote: "workflows").

    Args:
        extend: configuration.
        every: characters of all target languages; where they have no Latin letter, nothing is at risk.
        small_words: how often each word in small letters occurs in a target language's sample.
        encode: base token surfaces of texts.
    """
    if not every.letters("a"):
        return set()
    words = [item for item in words_at_large(extend, small_words) if not every.is_foreign(item[0])]
    risk: defaultdict[str, float] = defaultdict(float)
    found: set[str] = set()
    for pattern, change, share in _FORMS:
        for start in range(0, len(words), _ENCODED_TOGETHER):
            part = words[start : start + _ENCODED_TOGETHER]
            encoded = encode([pattern.format(change(word)) for word, _, _ in part])
            for (_, frequency, own), tokens in zip(part, encoded, strict=True):
                changed = share * (frequency + _UNSEEN_WORD)
                for joined in map(operator.add, tokens, tokens[1:]):
                    risk[joined] += changed
                if own and pattern[0] == " " and len(tokens) > 1:
                    found.add("".join(tokens))
    return found.union(joined for joined, total in risk.items() if total > _LARGEST_RISK)


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
    found: dict[str, None] = {}
    for word, frequency, own in words_at_large(extend, small_words):
        if own and frequency >= _PROTECTED_FREQUENCY:
            found |= dict.fromkeys((word, word.capitalize()))
    return list(found)


def words_at_large(
    extend: ExtendConfig, small_words: Mapping[str, Mapping[str, int]]
) -> list[tuple[str, float, bool]]:
    """Words of the protected languages, their frequencies, and whether they have them as often as the targets do.

    Words that a target language has :data:`_QUOTED` times as often are left out; all are, with
    ``protect_unseen: false``.
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
    return [
        (word, frequency, frequency >= elsewhere.get(word, 0.0))
        for language in extend.protect
        for word, frequency in load_word_list(language, default_list(language)).items()
        if elsewhere.get(word, 0.0) < _QUOTED * frequency
    ]


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
