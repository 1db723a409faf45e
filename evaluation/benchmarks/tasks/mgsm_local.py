"""MGSM's worked examples, and how the Japanese evaluation harness finds an answer."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record
from tsugiki.evaluation.benchmarks.scores import SCORES

_NUMBER = re.compile(r"-?[0-9.,]+")


@FORMATS.register("mgsm_exemplars")
def read_exemplars(text: str, *, language: str) -> list[Record]:
    """``question`` and worked ``answer`` of one language, from the dictionary of MGSM's ``exemplars.py``.

    The file is read as a literal; nothing in it runs.
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MGSM_EXEMPLARS":
            found = ast.literal_eval(node.value)[language]
            return [{"question": item["q"], "answer": item["a"]} for item in found.values()]
    raise ValueError("no MGSM_EXEMPLARS")


@SCORES.register("last_integer", right_or_wrong=True, raw=True)
def last_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 when the last run of ASCII digits, points and commas is a whole number and the answer.

    Source of the facts: ``lm_eval/tasks/ja/mgsm.py`` of Stability-AI/lm-evaluation-harness at 9b42d41.

    >>> last_integer("5 + 6 = 11。答えは11.0です。", ["11"])
    1.0
    """
    found = _NUMBER.findall(prediction)
    if not found:
        return 0.0
    try:
        number = float(found[-1].strip(".").replace(",", ""))
    except ValueError:
        return 0.0
    return float(number.is_integer() and int(number) in {int(answer.replace(",", "")) for answer in answers})
