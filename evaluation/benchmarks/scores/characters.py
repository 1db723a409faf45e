"""Answers compared character by character, for languages that write no spaces."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from tsugiki.evaluation.benchmarks.scores import SCORES


def normalised(text: str) -> str:
    """Width and case folded, white space and punctuation removed: what does not make an answer wrong."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(
        character for character in folded if unicodedata.category(character)[0] not in ("Z", "P", "C")
    )


@SCORES.register("character_f1", bounded=True)
def character_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 over the answers, characters as a bag.

    >>> character_f1("東京都", ["東京", "大阪"])
    0.8
    """
    return max(_f1(Counter(normalised(prediction)), Counter(normalised(answer))) for answer in answers)


@SCORES.register("character_rouge2", bounded=True)
def character_rouge2(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 over the answers, pairs of neighbouring characters as a bag."""
    return max(_f1(_pairs(normalised(prediction)), _pairs(normalised(answer))) for answer in answers)


def _pairs(text: str) -> Counter[str]:
    return Counter(text[position : position + 2] for position in range(len(text) - 1))


def _f1(given: Counter[str], wanted: Counter[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())
