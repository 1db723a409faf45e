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

    Attributes:
        scripts: the scripts, sorted, each once.
    """

    def __init__(self, scripts: Iterable[str]) -> None:
        import regex

        self.scripts = tuple(sorted(set(scripts)))
        classes = "".join(_script_class(script) for script in self.scripts)
        # Digits stay with the base's handling, so no script's own digits are merged; full-width Latin
        # is NFKC's business.
        character = rf"[[{classes}\p{{Mn}}\p{{Mc}}]--[\p{{Nd}}\p{{Z}}\uFF00-\uFF60\u2581]]"
        self._run = regex.compile(rf"(?V1) ?{character}+")
        self._piece = regex.compile(rf"(?V1){SPACE}?{character}+")
        self._letter = regex.compile(rf"(?V1)[{classes}]")
        foreign = "".join(_script_class(script) for script in self.scripts if script != "Latin")
        self._foreign = (
            regex.compile(rf"(?V1)[[{foreign}]--[\p{{Common}}\p{{Inherited}}]]") if foreign else None
        )

    def runs(self, text: str) -> list[str]:
        """Longest stretches of characters of the scripts, each with the one space before it, if any."""
        found: list[str] = self._run.findall(text)
        return found

    def allows(self, piece: str) -> bool:
        """Whether a piece (with ``▁`` for a space, at its start only) is of the scripts throughout."""
        return self._piece.fullmatch(piece) is not None

    def letters(self, text: str) -> int:
        """Characters of the scripts in a text."""
        return len(self._letter.findall(text))

    def is_foreign(self, text: str) -> bool:
        """Whether a text holds characters of a target script other than Latin, so is meant to change."""
        return self._foreign is not None and self._foreign.search(text) is not None

    def matcher(self) -> Any:
        """The compiled pattern behind :meth:`allows`, for tight loops."""
        return self._piece.fullmatch
