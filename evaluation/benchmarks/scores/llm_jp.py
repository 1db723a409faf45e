"""Scores as llm-jp-eval 1.x computes them, on which Swallow's Japanese table rests.

Both compare the first line of the answer with one right answer (several are joined before, see the tasks), width folded
(NFKC) and white space around it kept. Source of the facts: ``llm-jp-eval/scripts/evaluate_llm.py`` of the Swallow
authors' evaluation repository (github.com/swallow-llm/swallow-evaluation) at commit 9460018, and fuzzywuzzy 0.18.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from tsugiki.evaluation.benchmarks.scores import SCORES

_LATIN_1 = dict.fromkeys(range(128, 256))
"""Removed before comparing: what fuzzywuzzy takes for "not ASCII". Kana and ideographs stay."""
_NOT_A_WORD = re.compile(r"\W")


def first_line(written: str) -> str:
    """What counts of an answer."""
    return unicodedata.normalize("NFKC", written).split("\n")[0]


@SCORES.register("first_line_exact", right_or_wrong=True, raw=True)
def first_line_exact(prediction: str, answers: Sequence[str]) -> float:
    """1 when the first line is the answer.

    >>> first_line_exact("２\\n質問", ["2"])
    1.0
    """
    return float(first_line(prediction) in {unicodedata.normalize("NFKC", answer) for answer in answers})


@SCORES.register("character_ratio", bounded=True, raw=True)
def character_ratio(prediction: str, answers: Sequence[str]) -> float:
    """llm-jp-eval's ``char_f1``: twice the longest common subsequence over both lengths, in whole hundredths.

    Words (runs of letters and digits, in lower case) are sorted first; Japanese without punctuation is one word, so the
    order of its characters counts.

    >>> character_ratio("大阪市北区", ["北区大阪市"])
    0.6
    """
    given = sorted_words(first_line(prediction))
    return max(
        _hundredths(given, sorted_words(unicodedata.normalize("NFKC", answer))) / 100 for answer in answers
    )


def sorted_words(text: str) -> str:
    """The words of a text in the order of their code points, a space between them."""
    return " ".join(sorted(_NOT_A_WORD.sub(" ", text.translate(_LATIN_1)).lower().split()))


def _hundredths(one: str, other: str) -> int:
    if one == other:
        return 100
    if not one or not other:
        return 0
    # The order of operations is Levenshtein's, since a rounding of halves depends on it.
    distance = len(one) + len(other) - 2 * longest_common_subsequence(one, other)
    return round(100 * (1.0 - distance / (len(one) + len(other))))


def longest_common_subsequence(one: str, other: str) -> int:
    """Its length, by one addition a character (Hyyrö 2004, Bit-parallel LCS-length computation revisited).

    >>> longest_common_subsequence("大阪市北区", "北区大阪市")
    3
    """
    places: dict[str, int] = {}
    for position, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << position
    every = (1 << len(one)) - 1
    row = every  # a 0 where the subsequence is one longer than a place before
    for character in other:
        matched = row & places.get(character, 0)
        row = (row + matched | row - matched) & every
    return len(one) - row.bit_count()
