"""One pattern for a list of words."""

from __future__ import annotations

from functools import cache

import regex


@cache
def word_pattern(words: tuple[str, ...], bounded: bool) -> regex.Pattern[str]:
    """Matches any of the words, in any case; ``bounded``: only between spaces or punctuation."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    alternatives = "|".join(map(regex.escape, longest_first))
    return regex.compile(rf"\b(?:{alternatives})\b" if bounded else alternatives, regex.I)
