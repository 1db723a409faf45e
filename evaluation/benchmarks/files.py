"""Files of published benchmarks, in the form their authors give them, as lists of records.

Compressed files (``.zst``, ``.gz``) are found under the plain name.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import DataError

Record = dict[str, Any]
_LABEL = re.compile(r"^\s*\(?([^\s().]{1,3})[.)]\s*")
"""``A. …``, ``(1) …``, ``๓. …``: the label of an option."""


def find_file(folder: Path, name: str) -> Path | None:
    """The file or its compressed form; None when there is neither."""
    for ending in ("", ".zst", ".gz"):
        path = folder / (name + ending)
        if path.is_file():
            return path
    return None


def read_records(folder: Path, data: Mapping[str, Any]) -> list[Record]:
    """Records of a task's data file.

    Args:
        folder: directory of the files.
        data: the ``data`` section of a task: ``file``, ``format``, what the format needs, and ``add``:
            fields that every record gets.

    Raises:
        DataError: the file is missing, unreadable, or has no records.
    """
    path = find_file(folder, data["file"])
    if path is None:
        raise DataError(
            "a benchmark's file is missing",
            where=folder / data["file"],
            fix="get it from the benchmark's authors, or leave the task out of evaluate.harness.tasks",
        )
    try:
        records = _READERS[data["format"]](_text(path), data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not a file of the form `{data['format']}`", where=path, got=f"{type(error).__name__}: {error}"
        ) from error
    if not records:
        raise DataError("a benchmark's file has no records", where=path)
    return [{**record, **data.get("add", {})} for record in records]


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        if path.suffix == ".zst":
            import zstandard

            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        elif path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except Exception as error:  # zstandard, gzip and the decoder have no common base
        raise DataError("unreadable file", where=path, got=error) from error


def _json(text: str, data: Mapping[str, Any]) -> list[Record]:
    """A JSON list, or JSON lines."""
    if text.lstrip().startswith("["):
        listed: list[Record] = json.loads(text)
        return listed
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _tsv(text: str, data: Mapping[str, Any]) -> list[Record]:
    columns = data["columns"]
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in text.splitlines() if line.strip()]


def _squad(text: str, data: Mapping[str, Any]) -> list[Record]:
    """SQuAD's nesting, one record per answerable question."""
    return [
        {
            "id": str(question["id"]),
            "context": paragraph["context"],
            "question": question["question"],
            "answers": list(dict.fromkeys(answer["text"] for answer in question["answers"])),
        }
        for article in json.loads(text)["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        if question["answers"]
    ]


def _m3exam(text: str, data: Mapping[str, Any]) -> list[Record]:
    """Exam questions whose options carry their labels; questions without a right option are left out.

    ``background_description``, a list of lines, is the passage that a question is about.
    """
    names = {key: data.get(key, default) for key, default in _M3EXAM_FIELDS.items()}
    records = []
    for item in _json(text, data):
        options = [str(option).strip() for option in item[names["options"]]]
        labels = [match.group(1) for option in options if (match := _LABEL.match(option))]
        answer = str(item[names["answer"]]).strip().strip("().")
        if len(labels) == len(options) and answer in labels:
            records.append(
                {
                    "background": "".join(f"{line}\n" for line in item.get("background_description", ())),
                    "question": item[names["question"]],
                    "options": "\n".join(options),
                    "labels": labels,
                    "answer": labels.index(answer),
                }
            )
    return records


def _xwinograd(text: str, data: Mapping[str, Any]) -> list[Record]:
    """Sentences of ``language`` cut at the pronoun, with its two candidates.

    Columns: language, set, English sentence, sentence, tokens, pronoun, candidates; the last three are JSON.
    """
    records = []
    for line in text.splitlines():
        language, _, _, sentence, tokens, pronoun, candidates = line.split("\t")
        if language != data["language"]:
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


_M3EXAM_FIELDS = {"question": "question_text", "options": "options", "answer": "answer_text"}

_READERS: dict[str, Callable[[str, Mapping[str, Any]], list[Record]]] = {
    "json": _json,
    "tsv": _tsv,
    "squad": _squad,
    "m3exam": _m3exam,
    "xwinograd": _xwinograd,
}
