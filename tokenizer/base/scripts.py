"""Which characters belong to a language: the rule by which pieces are selected.

Script_Extensions is used rather than Script, so that 、 。 ー count as Japanese although Unicode calls
them Common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.text.hf_tokenizer import SPACE

_BY_SCRIPT = {
    "Latin": "af az bs ca ceb cs cy da de es et eu fi fil fr ga gl hr ht hu id ig is it jv lb lt lv mg ms mt "
    "nl no nb nn pl pt ro sk sl so sq su sv sw tl tr uz vi xh yo zu en",
    "Thai": "th",
    "Khmer": "km",
    "Lao": "lo",
    "Myanmar": "my shn mnw ksw",
    "Hangul": "ko",
    "Cyrillic": "ru uk be bg mk sr kk ky mn tg tt",
    "Arabic": "ar fa ur ps sd ug ckb",
    "Hebrew": "he yi",
    "Greek": "el",
    "Armenian": "hy",
    "Georgian": "ka",
    "Devanagari": "hi mr ne sa",
    "Bengali": "bn as",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Oriya": "or",
    "Ethiopic": "am ti",
    "Tibetan": "bo dz",
}
_LANGUAGE_SCRIPTS: dict[str, tuple[str, ...]] = {
    language: (script,) for script, languages in _BY_SCRIPT.items() for language in languages.split()
}
_LANGUAGE_SCRIPTS |= {
    "ja": ("Han", "Hiragana", "Katakana"),
    "zh": ("Han", "Bopomofo"),
    "yue": ("Han", "Bopomofo"),
}
_EAST_ASIAN = frozenset({"Han", "Hiragana", "Katakana", "Bopomofo"})
_WIDE_PUNCTUATION = r"\uFF01-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65"
_SHARED_PUNCTUATION = r"\u2014\u2018\u2019\u201C\u201D\u2026\u00B7"
"""Dashes, curly quotes, ellipsis, middle dot: part of Chinese and Japanese text, and of English too."""
LANGUAGE_LETTERS = {"vi": r"\u0102\u0103\u0110\u0111\u01A0\u01A1\u01AF\u01B0\u1EA0-\u1EF9"}
"""Latin letters by which text in a language is told from English text with foreign names in it."""
_LATIN_LETTER_CLASS = r"\p{Script=Latin}"
_JOINERS, _ZERO_WIDTH_SPACE = r"\u200C\u200D", r"\u200B"
"""Zero-width space, which stands between words of Khmer, Lao, Burmese and Thai, and the joiners inside words
of Persian and Indic scripts. A piece may hold joiners beside a letter of its script, and begin with a
zero-width space as with a space: inside of pieces, it makes them useless for text written without."""
_STANDARDS = {
    "zh": ("gb2312", ((0xB0, 0xD7),)),
    "zh-TW": ("big5", ((0xA4, 0xC5),)),
    "zh-HK": ("big5", ((0xA4, 0xC5),)),
    "zh-Hant": ("big5", ((0xA4, 0xC5),)),
    "yue": ("big5", ((0xA4, 0xC5),)),
    "ja": ("euc_jp", ((0xA4, 0xA5), (0xB0, 0xCF))),
    "ko": ("euc_kr", ((0xB0, 0xC8),)),
}
"""National standards of East Asia list the characters of everyday use first: codec and lead bytes of level 1
of GB 2312 (3,755 characters), Big5 (5,338 of 5,401), JIS X 0208 (2,965 and kana) and KS X 1001 (2,350)."""
_END_OF_ALPHABETS = 0x2000


def scripts_of(language: str, extra: Mapping[str, Sequence[str]] | None = None) -> tuple[str, ...]:
    """Unicode scripts of a language code (a region such as ``zh-TW`` is ignored).

    Args:
        language: ISO 639 code.
        extra: scripts by language, before the built-in table.

    Raises:
        ConfigError: the language is unknown, or a script is none of Unicode's.
    """
    code = language.replace("_", "-").split("-")[0].lower()
    found = (extra or {}).get(language) or _LANGUAGE_SCRIPTS.get(code)
    if not found:
        raise ConfigError(
            f"no script is known for language '{language}'",
            where="tokenizer.extend.languages",
            fix=f"name its Unicode scripts: tokenizer.extend.scripts: {{{language}: [Cyrillic]}}",
        )
    for script in found:
        _script_class(script)
    return tuple(found)


@cache
def _script_class(script: str) -> str:
    import regex

    if script == "Latin":
        # Script_Extensions of Latin would let in marks that are shared with other scripts.
        return _LATIN_LETTER_CLASS
    try:
        regex.compile(rf"\p{{scx={script}}}")
    except regex.error as error:
        raise ConfigError(
            f"'{script}' is no Unicode script",
            where="tokenizer.extend.scripts",
            expected="a name such as Latin, Cyrillic, Thai",
        ) from error
    return rf"\p{{scx={script}}}"


def everyday_characters(language: str, scripts: Sequence[str]) -> list[str]:
    """Characters that any text in a language may hold, whatever a sample of it holds.

    Of Chinese, Japanese and Korean, those of everyday use by national standard; of Latin, the letters that
    English has not, where they are listed; of others, every letter, mark and digit of the main blocks.

    Args:
        language: ISO 639 code, possibly with a region.
        scripts: its Unicode scripts.
    """
    import regex

    code = language.split("-")[0]
    if standard := _STANDARDS.get(language) or _STANDARDS.get(code):
        codec, leads = standard
        rows = (range(first, last + 1) for first, last in leads)
        pairs = (bytes((lead, trail)) for row in rows for lead in row for trail in range(0x40, 0xFF))
        texts = (pair.decode(codec, errors="ignore") for pair in pairs)
        return [text for text in texts if len(text) == 1 and text.isalpha() and not text.isascii()]
    others = set(scripts) - {"Latin", *_EAST_ASIAN}
    classes = "".join(rf"\p{{Script={script}}}" for script in others) + LANGUAGE_LETTERS.get(code, "")
    if not classes:
        return []
    alphabet = "".join(map(chr, range(0x80, _END_OF_ALPHABETS)))
    found: list[str] = regex.findall(rf"(?V1)[[{classes}]&&[\p{{L}}\p{{M}}\p{{Nd}}]]", alphabet)
    return found


def _words(character: str, space: str) -> str:
    """Pattern of one word, or of several with ``space`` between them."""
    return rf"{character}+(?:{space}{character}+)*" if space else rf"{character}+"


class ScriptRule:
    """Matches what a piece of the target languages may consist of.

    Args:
        scripts: Unicode scripts.
        phrases: a piece may be several words.
        letters: Latin letters that no protected language has, as the inside of a character class.

    Attributes:
        scripts: the scripts, sorted, each once.
    """

    def __init__(self, scripts: Iterable[str], *, phrases: bool = False, letters: str = "") -> None:
        import regex

        self.scripts = tuple(sorted(set(scripts)))
        classes = "".join(_script_class(script) for script in self.scripts)
        wide = _WIDE_PUNCTUATION if _EAST_ASIAN.intersection(self.scripts) else ""
        shared = _SHARED_PUNCTUATION if wide else ""
        other = bool(set(self.scripts) - {"Latin", *_EAST_ASIAN})
        joiners, gap = (_JOINERS, _ZERO_WIDTH_SPACE) if other else ("", "")
        # Full-width letters and digits are NFKC's business.
        character = (
            rf"[[{classes}\p{{Mn}}\p{{Mc}}{wide}{shared}{joiners}{gap}]"
            rf"--[\p{{Z}}\uFF10-\uFF19\uFF21-\uFF3A\uFF41-\uFF5A\u2581]]"
        )
        letter = rf"[{character}--[\p{{Nd}}{gap}]]"
        self._run = regex.compile("(?V1) ?" + _words(character, " " if phrases else ""))
        # Not of shared punctuation or joiners alone, which other languages write too. Digits stay single, as
        # the base has them.
        own = rf"(?=.*[[{classes}{wide}]--[\p{{Nd}}]])" if shared or joiners else ""
        words = _words(letter, SPACE if phrases else "")
        self._piece = regex.compile(rf"(?V1){own}[{SPACE}{gap}]?{words}|[[{classes}]&&[\p{{Nd}}]]")
        self._letter = regex.compile(rf"(?V1)[{classes}]")
        foreign = "".join(_script_class(script) for script in self.scripts if script != "Latin") + letters
        self._foreign = regex.compile(rf"(?V1)[{foreign}{wide}]") if foreign else None

    def runs(self, text: str) -> list[str]:
        """Longest stretches of characters of the scripts (and single spaces between them, where pieces may be
        phrases), each with the one space before it, if any."""
        found: list[str] = self._run.findall(text)
        return found

    def allows(self, piece: str) -> bool:
        """Whether a piece (``▁`` for a space, inside it only in phrases) is of the scripts throughout."""
        return self._piece.fullmatch(piece) is not None

    def letters(self, text: str) -> int:
        """Characters of the scripts in a text."""
        return len(self._letter.findall(text))

    def is_foreign(self, text: str) -> bool:
        """Whether a text holds characters of a target language only, so is meant to change."""
        return self._foreign is not None and self._foreign.search(text) is not None

    def matcher(self) -> Any:
        """The compiled pattern behind :meth:`allows`, for tight loops."""
        return self._piece.fullmatch
