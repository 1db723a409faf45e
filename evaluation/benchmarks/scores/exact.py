"""Answers that are right or wrong."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from tsugiki.evaluation.benchmarks.scores import SCORES

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@SCORES.register("accuracy", kind="choice", right_or_wrong=True)
def accuracy(likelihoods: Sequence[float], right: int) -> float:
    """1 when the right choice is the likeliest, the first among equals.

    >>> accuracy([-3.0, -1.5], 1)
    1.0
    """
    return float(likelihoods.index(max(likelihoods)) == right)


@SCORES.register("last_number", right_or_wrong=True)
def last_number(prediction: str, answers: Sequence[str]) -> float:
    """1 when the last number of the text is the answer's last number.

    >>> last_number("So 3 x 6 = 18 dollars.", ["18"])
    1.0
    """
    found, wanted = _last_number(prediction), {_last_number(answer) for answer in answers}
    return float(found is not None and found in wanted)


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return float(numbers[-1].replace(",", "")) if numbers else None
