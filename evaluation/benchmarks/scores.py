"""How answers of our benchmark tasks are scored."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def normalised(text: str) -> str:
    """Width and case folded, white space and punctuation removed: what does not make an answer wrong."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(
        character for character in folded if unicodedata.category(character)[0] not in ("Z", "P", "C")
    )


def character_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 over the answers, characters as a bag.

    >>> character_f1("東京都", ["東京", "大阪"])
    0.8
    """
    return max(_f1(Counter(normalised(prediction)), Counter(normalised(answer))) for answer in answers)


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


SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "character_f1": character_f1,
    "character_rouge2": character_rouge2,
    "last_number": last_number,
    "boxed": boxed,
}
"""Scores of one answer; their mean is the task's."""


def corpus_bleu(pairs: Sequence[tuple[str, str]], tokenizer: str) -> float:
    """BLEU of (reference, prediction) pairs, between 0 and 1, by sacrebleu."""
    import sacrebleu

    references, predictions = zip(*pairs, strict=True)
    score: float = sacrebleu.corpus_bleu(list(predictions), [list(references)], tokenize=tokenizer).score
    return score / 100


BLEU = {"bleu": "13a", "bleu_ja": "ja-mecab"}
"""Scores of a whole task, with sacrebleu's tokenizer."""
