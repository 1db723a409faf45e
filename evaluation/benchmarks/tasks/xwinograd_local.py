"""XWinograd's tab-separated file."""

from __future__ import annotations

import json

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record


@FORMATS.register("xwinograd")
def read_xwinograd(text: str, *, language: str) -> list[Record]:
    """Sentences of ``language`` cut at the pronoun, with its two candidates.

    Columns: language, set, English sentence, sentence, tokens, pronoun, candidates; the last three are JSON.
    """
    records = []
    for line in text.splitlines():
        of, _, _, sentence, tokens, pronoun, candidates = line.split("\t")
        if of != language:
            continue
        written, (first, _), _ = json.loads(pronoun)
        start = _position(sentence, json.loads(tokens), first, written)
        if start is None:
            continue
        options = json.loads(candidates)
        records.append(
            {
                "left": sentence[:start],
                "right": sentence[start + len(written) :].rstrip(),
                "choice1": options[0][0],
                "choice2": options[1][0],
                "label": [option[3] for option in options].index(True),
            }
        )
    return records


def _position(sentence: str, tokens: list[str], wanted: int, written: str) -> int | None:
    """Where a token of a sentence begins; None when tokens and sentence do not agree and it is not unique."""
    at = 0
    for number, token in enumerate(tokens):
        at = sentence.find(token, at)
        if at < 0:
            break
        if number == wanted and sentence.startswith(written, at):
            return at
        at += len(token)
    return sentence.index(written) if sentence.count(written) == 1 else None
