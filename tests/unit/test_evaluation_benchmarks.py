"""Benchmarks: readers, scores, suites against the published cards' shape, and the harness on a tiny model."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from evaluation_material import write_model

from evaluation.artefacts import Artefacts
from evaluation.benchmark_data import read_records
from evaluation.benchmark_scores import boxed, character_f1, character_rouge2, last_number, normalised
from evaluation.config import HarnessConfig
from evaluation.harness import _interval, benchmarks, check, evaluate_benchmarks, own_tasks, suites, wilson
from evaluation.report_benchmarks import benchmarks_section
from experiment.errors import ConfigError, DataError, EnvironmentError_
from experiment.graph import Graph, Stage
from experiment.stage import StageContext
from pipeline import load_experiment

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed"
)


def test_json_lines_and_lists_compressed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress('[{"x": "é"}]'.encode()))
    assert read_records(tmp_path, {"format": "json", "file": "a.jsonl"}) == [{"x": 1}, {"x": 2}]
    data = {"format": "json", "file": "b.json", "add": {"cue": "A:"}}
    assert read_records(tmp_path, data) == [{"x": "é", "cue": "A:"}]


def test_tsv_and_squad(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("How many?\t18\nAnd now?\t3\n")
    data = {"format": "tsv", "file": "m.tsv", "columns": ["question", "answer"]}
    assert read_records(tmp_path, data)[1] == {"question": "And now?", "answer": "3"}
    questions = [
        {"id": 1, "question": "Who?", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "Ann B."}]},
        {"id": 2, "question": "Unanswerable?", "answers": []},
    ]
    squad = {"data": [{"paragraphs": [{"context": "Ann B. came.", "qas": questions}]}]}
    (tmp_path / "s.json").write_text(json.dumps(squad))
    assert read_records(tmp_path, {"format": "squad", "file": "s.json"}) == [
        {"id": "1", "context": "Ann B. came.", "question": "Who?", "answers": ["Ann", "Ann B."]}
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
    records = read_records(tmp_path, {"format": "xwinograd", "file": "x.tsv", "language": "en"})
    assert [(item["left"], item["right"], item["label"]) for item in records] == [
        ("it is big, so ", " fell.", 0),
        ("said “so” ", " did", 1),
    ]
    assert (records[0]["choice1"], records[0]["choice2"]) == ("the cup", "the bag")
    japanese = read_records(tmp_path, {"format": "xwinograd", "file": "x.tsv", "language": "jp"})
    assert [(item["left"], item["right"], item["label"]) for item in japanese] == [("", "は来た。", 1)]


def test_bad_files_are_named(tmp_path: Path) -> None:
    data = {"format": "tsv", "file": "x.tsv", "columns": ["question", "answer"]}
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


def test_character_f1_by_hand() -> None:
    # 2 of 3 characters given are right, 2 of 2 wanted are given: F1 = 2 * 2 / (3 + 2)
    assert character_f1("東京都", ["東京"]) == pytest.approx(0.8)
    assert character_f1("ＴＯＫＹＯ。", ["tokyo"]) == 1.0
    assert character_f1("", ["東京"]) == 0.0
    assert character_f1("大阪", ["東京", "大阪府"]) == pytest.approx(0.8)


def test_rouge2_over_characters_by_hand() -> None:
    # ab bc cd against ab bc ce: 2 pairs shared of 3 and 3
    assert character_rouge2("abcd", ["abce"]) == pytest.approx(2 / 3)
    assert character_rouge2("a", ["b"]) == 1.0 or normalised("a") != normalised("b")


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("18 dollars", "18", 1.0),
        ("First 3, then 1,234.", "1234", 1.0),
        ("答えは１８です", "18", 1.0),
        ("It is 18, or 19", "18", 0.0),
        ("none", "18", 0.0),
        ("so 9 * 2 = 18.0", "Janet sells...\n#### 18", 1.0),
        ("-5", "5", 0.0),
    ],
)
def test_last_number(text: str, answer: str, right: float) -> None:
    assert last_number(text, [answer]) == right


def test_boxed() -> None:
    assert boxed(r"so \boxed{\sqrt{2} + 1}", [r"\sqrt{2}+1"]) == 1.0
    assert boxed("work\n42", ["42"]) == 1.0
    assert boxed(r"\boxed{41} \boxed{42", ["42"]) == 1.0
    assert boxed("", ["42"]) == 0.0


def test_wilson_interval_by_hand() -> None:
    # 0 of n: from 0 to z^2 / (n + z^2); 1.959964^2 = 3.8415.
    assert wilson(0.0, 6) == pytest.approx((0.0, 3.84146 / 9.84146), abs=1e-5)
    assert wilson(1.0, 6) == pytest.approx((6 / 9.84146, 1.0), abs=1e-5)
    # Half right is symmetric: 0.5 -/+ z / 2 / sqrt(n + z^2).
    half = 1.959964 / 2 / (100 + 3.84146) ** 0.5
    assert wilson(0.5, 100) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_suites_are_rectangular_and_own_tasks_are_known() -> None:
    for suite in suites().values():
        for values in suite["published"].values():
            assert len(values) == len(suite["columns"])
        assert suite["unit"] in (1, 100)
    # Spot checks against the cards.
    assert suites()["swallow-ja"]["published"]["Swallow 7B"][2] == 0.5968
    assert suites()["seallm-math"]["published"]["SeaLLM-7B-v2"][0] == 78.2
    assert own_tasks()["m3exam_th"]["data"]["file"] == "thai-questions-test.json"
    assert own_tasks()["wmt20_en_ja"]["score"] == "bleu_ja"


@needs_harness
def test_every_task_of_every_suite_exists() -> None:
    columns = [column["task"] for suite in suites().values() for column in suite["columns"]]
    foreign = sorted({task for task in columns if task not in own_tasks()})
    assert [item.task for item in check(HarnessConfig(tasks=foreign))] == foreign


def test_suites_open_and_examples_can_be_changed() -> None:
    config = HarnessConfig(tasks=["swallow-ja", "hellaswag"], fewshot={"jsquad": 1})
    found = benchmarks(config)
    assert len(found) == 9
    by_task = {item.task: item for item in found}
    assert (by_task["jsquad"].fewshot, by_task["niilc"].fewshot, by_task["hellaswag"].fewshot) == (1, 4, None)
    assert by_task["jsquad"].key == "swallow-ja/JSQuAD" and by_task["hellaswag"].key == "hellaswag"


def test_intervals_stay_on_their_scale() -> None:
    assert _interval("character_f1", 0.02, 0.02, 24) == [0.0, pytest.approx(0.02 + 1.959964 * 0.02)]
    # 24 answers without a right character do not prove that no answer ever has one.
    assert _interval("character_f1", 0.0, 0.0, 24) == list(wilson(0.0, 24))
    assert _interval("accuracy", 0.25, 0.1, 24) == list(wilson(0.25, 24))
    assert _interval("bleu", 20.0, 1.0, 24) == pytest.approx([18.04, 21.96], abs=1e-3)
    assert _interval("bleu", 20.0, None, 24) is None


def test_columns_of_a_suite_can_be_asked_for() -> None:
    (found,) = benchmarks(HarnessConfig(tasks=["seallm-knowledge/M3Exam th"]))
    assert (found.task, found.suite, found.fewshot) == ("m3exam_th", "seallm-knowledge", 3)
    assert found.key == "seallm-knowledge/M3Exam th"
    with pytest.raises(ConfigError, match="no such column") as raised:
        benchmarks(HarnessConfig(tasks=["swallow-ja/JSQUAD"]))
    assert "swallow-ja/JSQuAD" in str(raised.value)


def test_a_changed_data_file_redoes_the_evaluation(tmp_path: Path) -> None:
    data = tmp_path / "benchmarks"
    data.mkdir()
    overrides = ["evaluate.harness.tasks=[jsquad, xcopa_local_id]", f"evaluate.harness.data={data}"]
    smoke = Path(__file__).parents[2] / "configs" / "smoke.yaml"

    def files() -> list[Path]:
        graph = load_experiment(smoke, overrides).graph()
        sources = graph.stages["evaluate"].sources
        assert sources is not None
        return list(sources())

    assert files() == []
    (data / "jsquad-valid.json.gz").write_bytes(b"x")
    (data / "other.json").write_bytes(b"x")
    assert files() == [data / "jsquad-valid.json.gz"]
    plain = load_experiment(smoke).graph()
    assert plain.stages["evaluate"].sources is None
    # What a stage's sources contain is part of its key.
    stage = Stage("evaluate", None, (), "evaluation.evaluate:run", sources=files)
    graph = Graph([stage], tmp_path / "run", StageContext())
    before = graph.key_parts(stage)
    (data / "jsquad-valid.json.gz").write_bytes(b"another")
    assert Graph([stage], tmp_path / "run", StageContext()).key_parts(stage) != before


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentError_, match="not installed") as raised:
        check(HarnessConfig(tasks=["hellaswag"]))
    assert "tsugiki[eval]" in str(raised.value)


@needs_harness
def test_requests_that_cannot_be_met_fail_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such task") as raised:
        check(HarnessConfig(tasks=["helaswag"]))
    assert "hellaswag" in str(raised.value)
    with pytest.raises(ConfigError, match="read local files"):
        check(HarnessConfig(tasks=["jsquad"]))
    with pytest.raises(DataError, match="files of benchmarks are missing") as raised_data:
        check(HarnessConfig(tasks=["swallow-ja"], data=str(tmp_path)))
    assert "niilc.jsonl" in str(raised_data.value)


@needs_harness
def test_the_harness_agrees_with_likelihoods_computed_directly(tmp_path: Path) -> None:
    questions = [
        {
            "premise": f"The {thing} is",
            "choice1": "red",
            "choice2": "very heavy",
            "question": "effect",
            "label": 0,
        }
        for thing in ("stone", "flag", "river", "ship", "letter", "bread")
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / "val.id.jsonl").write_text("".join(json.dumps(item) + "\n" for item in questions))
    directory = write_model(tmp_path / "model")
    config = HarnessConfig(tasks=["xcopa_local_id", "mgsm_local_en"], data=str(data), limit=6)
    (data / "mgsm_en.tsv").write_text("One and one?\t2\nTwo and two?\t4\n")
    outcomes = evaluate_benchmarks(directory, check(config), config, dtype="float32", device="cpu", seed=1)

    from evaluation.language_model import load_language_model

    model = load_language_model(directory, device="cpu")
    right = 0
    for item in questions:
        context = f"{item['premise']} maka"
        totals = []
        for choice in (item["choice1"], item["choice2"]):
            start = len(model.codec.encode(context)) + 1
            ids = torch.tensor([[1, *model.codec.encode(f"{context} {choice}")]])
            with torch.no_grad():
                logs = torch.log_softmax(model.network(ids).logits[0].double(), -1)
            totals.append(sum(float(logs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])))
        right += totals[0] > totals[1]
    outcome = outcomes["xcopa_local_id"]
    assert outcome["value"] == pytest.approx(right / 6)
    assert (outcome["questions"], outcome["fewshot"], outcome["metric"]) == (6, 0, "accuracy")
    assert outcomes["mgsm_local_en"]["questions"] == 2
    assert 0 <= outcomes["mgsm_local_en"]["value"] <= 1


def test_the_report_shows_ours_beside_the_published_row() -> None:
    def outcome(value: float) -> dict[str, object]:
        return {
            "title": "JSQuAD",
            "suite": "swallow-ja",
            "task": "jsquad",
            "metric": "character_f1",
            "value": value,
            "standard_error": 0.01,
            "interval": [value - 0.0196, value + 0.0196],
            "fewshot": 4,
            "questions": 100,
        }

    artefacts = Artefacts.load({})
    assert benchmarks_section(artefacts, []) is None
    measured = {
        name: {"swallow-ja/JSQuAD": outcome(value)} for name, value in (("base", 0.7), ("result", 0.8))
    }
    artefacts = Artefacts(**{**vars(artefacts), "results": {"benchmarks": measured}})
    section = benchmarks_section(artefacts, ["Swallow 7B"])
    assert section is not None
    for expected in ("0.7000", "0.8000", "[0.6804, 0.7196]", "Swallow 7B", "0.8573", "JSQuAD 4 (100)"):
        assert expected in section.content
    assert "Swallow 70B" not in section.content
