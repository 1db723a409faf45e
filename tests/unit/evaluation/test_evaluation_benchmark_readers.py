"""Readers of benchmark files: every form to records, and files that are not so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki.evaluation.benchmarks.formats import Record
from tsugiki.evaluation.benchmarks.formats import read_records as read_file
from tsugiki.evaluation.benchmarks.task import TaskData
from tsugiki.experiment.errors import DataError


def read_records(folder: Path, data: dict[str, Any]) -> list[Record]:
    """Records of what the `data` section of a task says."""
    found = TaskData(**data)
    return read_file(folder, found.file, found.format, found.options, found.add)


def test_json_lines_and_lists_compressed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress('[{"x": "é"}]'.encode()))
    assert read_records(tmp_path, {"format": "json", "file": "a.jsonl"}) == [{"x": 1}, {"x": 2}]
    data = {"format": "json", "file": "b.json", "add": {"cue": "A:"}}
    assert read_records(tmp_path, data) == [{"x": "é", "cue": "A:"}]


def test_tsv_and_squad(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("How many?\t18\nAnd now?\t3\n")
    data = {"format": "tsv", "file": "m.tsv", "options": {"columns": ["question", "answer"]}}
    assert read_records(tmp_path, data)[1] == {"question": "And now?", "answer": "3"}
    questions = [
        {"id": 1, "question": "Who?", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "Ann B."}]},
        {"id": 2, "question": "Unanswerable?", "answers": []},
    ]
    squad = {"data": [{"paragraphs": [{"context": "Ann B. came.", "qas": questions}]}]}
    (tmp_path / "s.json").write_text(json.dumps(squad))
    assert read_records(tmp_path, {"format": "squad", "file": "s.json"}) == [
        {
            "id": "1",
            "context": "Ann B. came.",
            "question": "Who?",
            "answers": ["Ann", "Ann B."],
            "answer": "Ann",
        }
    ]


def test_m3exam_labels_of_every_kind(tmp_path: Path) -> None:
    items = [
        {"question_text": "q1", "answer_text": "D", "options": ["A. a", "B. b", "C. c", "D. d"]},
        {"question_text": "q2", "answer_text": "๓", "options": ["๑. ก", "๒. ข", "๓. ค"]},
        {"question_text": "q3", "answer_text": "(2)", "options": ["(1) x", "(2) y"]},
        {"question_text": "no such option", "answer_text": "E", "options": ["A. a", "B. b"]},
    ]
    (tmp_path / "m.json").write_text(json.dumps(items))
    records = read_records(tmp_path, {"format": "m3exam", "file": "m.json"})
    assert [(record["labels"], record["answer"]) for record in records] == [
        (["A", "B", "C", "D"], 3),
        (["๑", "๒", "๓"], 2),
        (["1", "2"], 1),
    ]
    assert records[0]["options"] == "A. a\nB. b\nC. c\nD. d"


def test_m3exam_keeps_the_passage(tmp_path: Path) -> None:
    items = [
        {
            "question_text": "q1",
            "background_description": ["P1", "P2"],
            "answer_text": "A",
            "options": ["A. a", "B. b"],
        },
        {
            "question_text": "q2",
            "background_description": [],
            "answer_text": "B",
            "options": ["A. a", "B. b"],
        },
    ]
    (tmp_path / "m.json").write_text(json.dumps(items))
    records = read_records(tmp_path, {"format": "m3exam", "file": "m.json"})
    assert [record["background"] for record in records] == ["P1\nP2\n", ""]


def test_xwinograd_is_cut_at_the_pronoun(tmp_path: Path) -> None:
    def row(language: str, sentence: str, tokens: list[str], at: int, pronoun: str, right: int) -> str:
        options = [
            ["the cup", [0, 2], ["the", "cup"], right == 0],
            ["the bag", [3, 5], ["the", "bag"], right == 1],
        ]
        fields = [json.dumps(tokens), json.dumps([pronoun, [at, at + 1], [pronoun]]), json.dumps(options)]
        return "\t".join([language, "original", "?", sentence, *fields])

    rows = [
        row("en", "it is big, so it fell. ", ["it", "is", "big", ",", "so", "it", "fell", "."], 5, "it", 0),
        row("jp", "彼は来た。", ["彼", "は来た。"], 0, "彼", 1),
        # Tokens that are not in the sentence: the pronoun is found where it stands only once.
        row("en", "said “so” they did", ["said", '"', "so", '"', "they", "did"], 4, "they", 1),
        row("en", "said “it” it did", ["said", '"', "it", '"', "it", "did"], 4, "it", 1),
    ]
    (tmp_path / "x.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    records = read_records(tmp_path, {"format": "xwinograd", "file": "x.tsv", "options": {"language": "en"}})
    assert [(item["left"], item["right"], item["label"]) for item in records] == [
        ("it is big, so ", " fell.", 0),
        ("said “so” ", " did", 1),
    ]
    assert (records[0]["choice1"], records[0]["choice2"]) == ("the cup", "the bag")
    japanese = read_records(tmp_path, {"format": "xwinograd", "file": "x.tsv", "options": {"language": "jp"}})
    assert [(item["left"], item["right"], item["label"]) for item in japanese] == [("", "は来た。", 1)]


def test_bad_files_are_named(tmp_path: Path) -> None:
    data = {"format": "tsv", "file": "x.tsv", "options": {"columns": ["question", "answer"]}}
    with pytest.raises(DataError, match="file is missing"):
        read_records(tmp_path, data)
    (tmp_path / "x.tsv").write_text("only one column\n")
    with pytest.raises(DataError, match="not a file of the form `tsv`"):
        read_records(tmp_path, data)
    (tmp_path / "x.tsv").write_text("\n")
    with pytest.raises(DataError, match="no records"):
        read_records(tmp_path, data)
    (tmp_path / "y.json.zst").write_bytes(b"not zstandard")
    with pytest.raises(DataError, match="unreadable file"):
        read_records(tmp_path, {"format": "json", "file": "y.json"})


def test_an_exam_without_answers_says_what_is_missing(tmp_path: Path) -> None:
    """VMLU's test file, as its authors publish it, has none."""
    (tmp_path / "vmlu.jsonl").write_text('{"id": "28-1", "question": "q", "choices": ["A. x", "B. y"]}\n')
    data = {
        "format": "m3exam", "file": "vmlu.jsonl",
        "options": {"question": "question", "options": "choices", "answer": "answer"},
    }  # fmt: skip
    with pytest.raises(DataError, match=r"a question without answer; it has choices, id, question"):
        read_records(tmp_path, data)
