"""Word boundaries for fertility and for pretokenisation: a proper segmenter where one is installed.

Nothing here downloads; a package that is absent is replaced by a simple rule, and the report names what was
used.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from tsugiki.experiment.errors import EnvironmentError_

Split = Callable[[str], Sequence[str]]
PACKAGES = {
    "mecab": ("fugashi", "unidic_lite"),
    "jieba": ("jieba",),
    "thai": ("pythainlp",),
    "khmer": ("khmernltk",),
    "lao": ("laonlp",),
    "burmese": ("pyidaungsu",),
}
_BLANK = " \t\n\r\f\v\u3000\u200b"
_ON_PYPI = {"unidic_lite": "unidic-lite", "khmernltk": "khmer-nltk", "pyidaungsu": "pyidaungsu-numpy2"}
_FOR_LANGUAGE = {"ja": "mecab", "zh": "jieba", "th": "thai", "km": "khmer", "lo": "lao", "my": "burmese"}
UNSPACED = frozenset({"ja", "zh", "yue", "th", "km", "lo", "my"})
"""Languages that write no space between words."""


@dataclass(frozen=True)
class WordSplitter:
    """A word segmenter and its name for the report."""

    name: str
    split: Split


def pretokeniser(name: str) -> Split:
    """The segmenter of ``tokenizer.extend.pretokenise``; its words joined give back the text.

    Raises:
        EnvironmentError_: its package is not installed.
    """
    missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise EnvironmentError_(
            f"pretokenisation by '{name}' needs {', '.join(PACKAGES[name])}",
            where="tokenizer.extend.pretokenise",
            got=f"not installed: {', '.join(missing)}",
            fix=f"pip install {' '.join(_ON_PYPI.get(item, item) for item in PACKAGES[name])} (all of them: "
            "pip install 'tsugiki[words]'), or leave the language out of pretokenise",
        )
    return _segmenter(name)


@cache
def _segmenter(name: str) -> Split:
    if name == "mecab":
        import fugashi

        tagger = fugashi.Tagger()
        return lambda text: [word.surface for word in tagger(text)]
    if name == "jieba":
        jieba = importlib.import_module("jieba")
        jieba.setLogLevel(60)
        return lambda text: list(jieba.cut(text, HMM=False))
    if name == "thai":
        pythainlp = importlib.import_module("pythainlp.tokenize")
        return lambda text: list(pythainlp.word_tokenize(text, engine="newmm", keep_whitespace=True))
    if name == "khmer":
        khmer = importlib.import_module("khmernltk")
        return lambda text: list(khmer.word_tokenize(text))
    if name == "lao":
        lao = importlib.import_module("laonlp.tokenize")
        return lambda text: list(lao.word_tokenize(text))
    burmese = importlib.import_module("pyidaungsu")
    return lambda text: list(burmese.tokenize(text, form="word"))


def keep_everything(split: Split) -> Split:
    """A splitter whose words, joined, are the text.

    What a segmenter swallows or gives as a word of its own (a space, the zero-width space of Khmer) goes to
    the word after it: pieces may begin with it, and never end so.
    """

    def exact(text: str) -> list[str]:
        words: list[str] = []
        end = 0
        for word in split(text):
            at = text.find(word, end) if word.strip(_BLANK) else -1
            if at >= 0:
                words.append(text[end:at] + word)
                end = at + len(word)
        if end < len(text):
            words[-1:] = ["".join([*words[-1:], text[end:]])]
        return words

    return exact


def word_splitter(language: str) -> WordSplitter:
    """The best word segmenter for a language on this machine."""
    code = language.split("-")[0].lower()
    name = _FOR_LANGUAGE.get(code)
    if name is not None and all(importlib.util.find_spec(package) for package in PACKAGES[name]):
        return WordSplitter(name, _segmenter(name))
    import regex

    if code in UNSPACED:
        # Katakana and kanji runs are words by themselves, other scripts go by grapheme clusters.
        pattern = regex.compile(r"\p{Katakana}+|\p{Latin}+|\p{Nd}+|\p{Han}|\p{Hiragana}+|\X")
        return WordSplitter("script runs and grapheme clusters", pattern.findall)
    pattern = regex.compile(r"[\p{L}\p{M}\p{N}'’-]+|[^\s\p{L}\p{M}\p{N}]")
    return WordSplitter("letters between spaces and punctuation", pattern.findall)
