"""Which characters belong to a language: the rule by which pieces are selected.

Script_Extensions is used rather than Script, so that 、 。 ー count as Japanese although Unicode calls
them Common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from experiment.errors import ConfigError
from experiment.hf_tokenizer import SPACE

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
        # Digits stay with the base's handling, so no script's own digits are merged; full-width letters and
        # digits are NFKC's business.
        character = (
            rf"[[{classes}\p{{Mn}}\p{{Mc}}{wide}{shared}]"
            rf"--[\p{{Nd}}\p{{Z}}\uFF10-\uFF19\uFF21-\uFF3A\uFF41-\uFF5A\u2581]]"
        )
        words = rf"{character}+(?:{{space}}{character}+)*" if phrases else rf"{character}+"
        self._run = regex.compile("(?V1) ?" + words.replace("{space}", " "))
        # Not of shared punctuation alone, which other languages write too.
        own = rf"(?=.*[[{classes}{wide}]--[\p{{Nd}}]])" if shared else ""
        self._piece = regex.compile(f"(?V1){own}{SPACE}?" + words.replace("{space}", SPACE))
        self._letter = regex.compile(rf"(?V1)[{classes}]")
        foreign = "".join(_script_class(script) for script in self.scripts if script != "Latin") + letters
        self._foreign = regex.compile(rf"(?V1)[[{foreign}{wide}]--[\p{{Nd}}]]") if foreign else None

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
