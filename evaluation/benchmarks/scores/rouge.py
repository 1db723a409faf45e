"""ROUGE-2 of Japanese summaries over words, as the Japanese evaluation harness means it.

Source of the facts: ``lm_eval/tasks/ja`` and ``lm_eval/utils.py`` of Stability-AI/lm-evaluation-harness at 9b42d41.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from tsugiki.evaluation.benchmarks.scores import SCORES

_PICTURES = [(0x1F600, 0x1F64F), (0x1F300, 0x1F5FF), (0x1F680, 0x1F6FF), (0x1F1E0, 0x1F1FF), (0x2702, 0x27B0)]
"""Blocks that are removed beside what Unicode calls an emoji: faces, symbols, transport, flags, dingbats."""


def rouge2(given: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of pairs of neighbouring words; 0 where one side has none.

    >>> rouge2(["a", "b", "c"], ["a", "b"])
    0.6666666666666666
    """
    one, other = (Counter(pairwise(words)) for words in (given, wanted))
    shared = (one & other).total()
    if not shared:
        return 0.0
    precision, recall = shared / one.total(), shared / other.total()
    return 2 * precision * recall / (precision + recall)


@SCORES.register(
    "rouge2_mecab",
    bounded=True,
    requires=(
        "fugashi unidic_lite neologdn emoji",
        "ROUGE over Japanese words",
        "pip install 'tsugiki[eval]'",
    ),
)
def rouge2_mecab(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-2 over MeCab's words (UniDic's lite dictionary), emoji removed and characters folded by neologdn."""
    given = words(prediction)
    return max(rouge2(given, words(answer)) for answer in answers)


def words(text: str) -> list[str]:
    """Words of a Japanese text."""
    import emoji
    import neologdn

    kept = "".join(
        character
        for character in text
        if not emoji.is_emoji(character) and not any(low <= ord(character) <= high for low, high in _PICTURES)
    )
    folded = " ".join(neologdn.normalize(kept).split())
    found: list[str] = _tagger().parse(folded).split()
    return found


@cache
def _tagger() -> Any:
    from fugashi import Tagger

    return Tagger("-Owakati")
