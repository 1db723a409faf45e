"""SQuAD's JSON, which JSQuAD and XQuAD share."""

from __future__ import annotations

import json

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record


@FORMATS.register("squad")
def read_squad(text: str, *, language: str = "") -> list[Record]:
    """SQuAD's nesting, one record per answerable question.

    Args:
        text: of the file.
        language: only questions whose `id` begins with it, as in TyDiQA's file of all languages (`indonesian`).
    """
    return [
        {
            "id": str(question["id"]),
            "context": paragraph["context"],
            "question": question["question"],
            "answers": list(dict.fromkeys(answer["text"] for answer in question["answers"])),
            "answer": question["answers"][0]["text"],
        }
        for article in json.loads(text)["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        if question["answers"] and str(question["id"]).startswith(f"{language}-" if language else "")
    ]
