"""M3Exam's form of an exam."""

from __future__ import annotations

import re

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record
from tsugiki.evaluation.benchmarks.formats.lines import read_json

_LABEL = re.compile(r"^\s*\(?([^\s().]{1,3})[.)]\s*")
"""``A. …``, ``(1) …``, ``๓. …``: the label of an option."""


@FORMATS.register("m3exam")
def read_m3exam(
    text: str, *, question: str = "question_text", options: str = "options", answer: str = "answer_text"
) -> list[Record]:
    """Exam questions whose options carry their labels; questions without a right option are left out.

    ``background_description``, a list of lines, is the passage that a question is about.

    Args:
        text: of the file.
        question, options, answer: names of the fields.
    """
    records = []
    for item in read_json(text):
        if missing := [name for name in (question, options, answer) if name not in item]:
            raise ValueError(f"a question without {', '.join(missing)}; it has {', '.join(sorted(item))}")
        choices = [str(option).strip() for option in item[options]]
        labels = [match.group(1) for option in choices if (match := _LABEL.match(option))]
        right = str(item[answer]).strip().strip("().")
        if len(labels) == len(choices) and right in labels:
            records.append(
                {
                    "background": "".join(f"{line}\n" for line in item.get("background_description", ())),
                    "question": item[question],
                    "options": "\n".join(choices),
                    "labels": labels,
                    "answer": labels.index(right),
                }
            )
    return records
