"""MATH's way of writing the final answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tsugiki.evaluation.benchmarks.scores import SCORES


@SCORES.register("boxed", right_or_wrong=True)
def boxed(prediction: str, answers: Sequence[str]) -> float:
    r"""1 when the content of the last ``\boxed{}`` (else the last line) is an answer, spaces aside.

    >>> boxed(r"Hence $\boxed{\frac{1}{2}}$.", [r"\frac{1}{2}"])
    1.0
    """
    given = _boxed(prediction)
    wanted = {_plain(_boxed(answer)) for answer in answers}
    return float(_plain(given) in wanted)


def _boxed(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start < 0:
        lines = text.strip().splitlines()
        return lines[-1] if lines else ""
    depth = 0
    begin = start + len("\\boxed")
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin + 1 : position]
    return text[begin + 1 :]


def _plain(text: str) -> str:
    return re.sub(r"\s|\$|\\[!,;]|\.$", "", text)
