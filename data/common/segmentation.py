"""Fast word segmentation for the filters, as a datatrove ``WordTokenizer``.

Filters need units of roughly word size, the same in every run: they do not need a morphological
analysis. datatrove's analysers cost 0.3–2 MB/s a core and are most of the time of its filters;
the regular expressions here give 10–40 MB/s.

- ``words``: runs of letters, marks and digits; single symbols. Languages with spaces.
- ``script_runs``: Japanese: runs of one script (kanji, hiragana, katakana, Latin, digits).
- ``characters``: Chinese: each ideograph is a unit; other scripts by runs.
- ``syllables``: Thai, Lao, Khmer, Burmese: orthographic syllables (a base with everything that is
  written around it); other scripts by runs.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

from datatrove.utils.word_tokenizers import WordTokenizer

Segmentation = Literal["words", "script_runs", "characters", "syllables"]

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3005\u3007\U00020000-\U0003ffff"
_HIRAGANA = "\u3041-\u3096\u309d\u309e"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30fe\u31f0-\u31ff\uff66-\uff9f"
_DIGITS = r"\d+(?:[.,]\d+)*"
_LATIN = r"[^\W\d_]+(?:['’][^\W\d_]+)*"
# Zero-width spaces (Khmer writes them between words), joiners and direction marks are no units.
_SYMBOL = r"[^\w\s\u200b-\u200f\u2060]"
_REST = rf"\w+|{_SYMBOL}"

# Thai: leading vowel, consonant, then vowels, tone marks and other signs; a final consonant with a
# silencing mark stays with it.
_THAI = (
    r"[\u0e40-\u0e44]?[\u0e01-\u0e2e](?:\u0e4c)?"
    r"[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*[\u0e30\u0e32\u0e33\u0e45]*"
)
# Lao: as Thai; the semivowel sign and subscripts follow the consonant.
_LAO = (
    r"[\u0ec0-\u0ec4]?[\u0e81-\u0eae\u0edc-\u0edf]"
    r"[\u0eb1\u0eb4-\u0ebd\u0ec8-\u0ece]*[\u0eb0\u0eb2\u0eb3]*"
)
# Khmer: base, subscript consonants (coeng + consonant), vowels and signs.
_KHMER = r"[\u1780-\u17b3](?:\u17d2[\u1780-\u17b3])*[\u17b4-\u17d1\u17d3\u17dd]*"
# Burmese: initial with medials, vowels and tones, then closing consonants (asat) and stacked ones.
_BURMESE = (
    r"[\u1000-\u102a\u103f\u104c-\u104f](?:\u1039[\u1000-\u1021])*[\u102b-\u103e\u1056-\u1059]*"
    r"(?:[\u1000-\u1021](?:\u1039[\u1000-\u1021][\u102b-\u103e]*|[\u103a-\u103a][\u102b-\u103e]*))*"
)


@cache
def _pattern(kind: Segmentation) -> re.Pattern[str]:
    if kind == "words":
        # Combining marks are no \w in Python, so they are listed: decomposed Vietnamese.
        return re.compile(rf"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*(?:['’-][^\W_]+)*|{_SYMBOL}|_+")
    if kind == "script_runs":
        return re.compile(f"[{_HAN}]+|[{_HIRAGANA}]+|[{_KATAKANA}]+|{_DIGITS}|[A-Za-zＡ-Ｚａ-ｚ]+|{_REST}")
    if kind == "characters":
        latin = r"[A-Za-z\u00c0-\u024fＡ-Ｚａ-ｚ]+"
        return re.compile(f"[{_HAN}]|[{_HIRAGANA}]+|[{_KATAKANA}]+|{_DIGITS}|{latin}|{_REST}")
    return re.compile(f"{_THAI}|{_LAO}|{_KHMER}|{_BURMESE}|{_DIGITS}|[A-Za-z]+|{_LATIN}|{_REST}")


_SENTENCE_END = re.compile(r".+?(?:[。！？!?．၊။។៕]+[」』）)\"'”’]*|\.(?=\s|$)|\n|$)", re.S)


class FastTokenizer(WordTokenizer):
    """A datatrove word tokenizer made of one regular expression."""

    def __init__(self, kind: Segmentation) -> None:
        super().__init__(kind)
        self.kind = kind

    def word_tokenize(self, text: str) -> list[str]:
        """Units in order, whitespace left out."""
        return _pattern(self.kind).findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences by end punctuation and newlines."""
        return [part for match in _SENTENCE_END.finditer(text) if (part := match[0].strip())]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Sentence spans that cover the text."""
        return [match.span() for match in _SENTENCE_END.finditer(text) if match.end() > match.start()]


# Units per word of the analysers datatrove would use (Sudachi, jieba, pyvi, PyThaiNLP, khmer-nltk,
# laonlp, pyidaungsu), measured on software documentation, encyclopedia and news.
_LANGUAGES: dict[str, tuple[Segmentation, float]] = {
    "ja": ("script_runs", 0.79),
    "zh": ("characters", 1.51),
    "vi": ("words", 1.24),
    "th": ("syllables", 2.86),
    "km": ("syllables", 2.45),
    "lo": ("syllables", 2.10),
    "my": ("syllables", 1.81),
}


def default_segmentation(language: str) -> tuple[Segmentation, float]:
    """Segmentation of a language and its units per word, where no profile says it."""
    return _LANGUAGES.get(language.split("-")[0], ("words", 1.0))


@cache
def tokenizer_for(kind: Segmentation) -> FastTokenizer:
    """One tokenizer per kind: datatrove caches segmentations by tokenizer, so filters share them."""
    return FastTokenizer(kind)
