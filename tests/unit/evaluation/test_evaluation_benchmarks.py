"""Benchmarks: readers, scores, suites against the published cards' shape, and the harness on a tiny model."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_material import write_model

from tsugiki.evaluation.benchmarks.formats import Record
from tsugiki.evaluation.benchmarks.formats import read_records as read_file
from tsugiki.evaluation.benchmarks.harness import (
    _answer_length,
    _interval,
    _outcome,
    check,
    check_chat_template,
    evaluate_benchmarks,
    wilson,
)
from tsugiki.evaluation.benchmarks.scores.characters import character_f1, character_rouge2, normalised
from tsugiki.evaluation.benchmarks.scores.exact import last_number
from tsugiki.evaluation.benchmarks.suites import benchmarks, data_files, missing_files, origins, suites
from tsugiki.evaluation.benchmarks.task import TaskData, own_tasks
from tsugiki.evaluation.benchmarks.tasks.math_local import boxed
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.evaluation.pages.benchmarks import benchmarks as shown_benchmarks
from tsugiki.evaluation.report import TEMPLATE
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_
from tsugiki.experiment.pages.page import Section, render_section
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pipeline import load_experiment

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed"
)


def benchmarks_of(artefacts: Artefacts, published: list[str]) -> str:
    """The section of the report as HTML."""
    section = Section("benchmarks", "Benchmarks", shown_benchmarks(artefacts, published))
    return render_section(section, TEMPLATE)


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


def test_character_f1_by_hand() -> None:
    # 2 of 3 characters given are right, 2 of 2 wanted are given: F1 = 2 * 2 / (3 + 2)
    assert character_f1("東京都", ["東京"]) == pytest.approx(0.8)
    assert character_f1("ＴＯＫＹＯ。", ["tokyo"]) == 1.0
    assert character_f1("", ["東京"]) == 0.0
    assert character_f1("大阪", ["東京", "大阪府"]) == pytest.approx(0.8)


def test_rouge2_over_characters_by_hand() -> None:
    # ab bc cd against ab bc ce: 2 pairs shared of 3 and 3
    assert character_rouge2("abcd", ["abce"]) == pytest.approx(2 / 3)
    # The better of two references; one pair of three and one shared of it: 2 * 1 / (3 + 1)
    assert character_rouge2("abcd", ["xy", "cd"]) == pytest.approx(0.5)
    assert character_rouge2("ab", ["ba"]) == 0.0
    # Nothing to pair on one side is wrong, on both sides nothing is missing.
    assert character_rouge2("a", ["bc"]) == 0.0
    assert character_rouge2("a", ["b"]) == 1.0


def test_what_does_not_make_an_answer_wrong() -> None:
    assert normalised(" Ａ、b. ") == normalised("ab")
    assert normalised("a") != normalised("b")


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
    assert own_tasks()["m3exam_th"].data.file == "thai-questions-test.json"
    assert own_tasks()["wmt20_en_ja"].score == "bleu_ja"


@pytest.mark.slow
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


def _measured(task: str, numbers: dict[str, object], fewshot: int) -> dict[str, dict[str, object]]:
    """What the harness gives for a task."""
    return {"results": {task: numbers}, "n-samples": {task: {"effective": 1000}}, "n-shot": {task: fewshot}}


def test_scores_lie_on_the_scale_of_the_published_row() -> None:
    """SQuAD2.0 of the harness is 0 to 100, the card's row 0 to 1."""
    (item,) = benchmarks(HarnessConfig(tasks=["swallow-en/SQuAD2.0"]))
    found = _outcome(item, _measured("squadv2", {"exact,none": 32.07, "exact_stderr,none": 1.5}, 8))
    assert found["value"] == pytest.approx(0.3207)
    assert found["standard_error"] == pytest.approx(0.015)
    assert found["interval"] == pytest.approx(wilson(0.3207, 1000))
    results = {"benchmarks": {name: {item.key: found} for name in ("base", "result")}}
    artefacts = Artefacts(**{**vars(Artefacts.load({})), "results": results})
    content = benchmarks_of(artefacts, ["Swallow 7B"])
    assert "0.3207" in content and "0.3125" in content


def test_the_filter_whose_answer_counts() -> None:
    """Zero-shot chat never writes GSM8K's `####`; examples of eight shots do."""
    numbers: dict[str, object] = {
        "exact_match,strict-match": 0.001, "exact_match_stderr,strict-match": 0.001,
        "exact_match,flexible-extract": 0.8, "exact_match_stderr,flexible-extract": 0.01,
    }  # fmt: skip
    (chat,) = benchmarks(HarnessConfig(tasks=["sus-chat-reasoning/gsm8k"]))
    assert _outcome(chat, _measured("gsm8k", numbers, 0))["value"] == 0.8
    (plain,) = benchmarks(HarnessConfig(tasks=["swallow-en/GSM8K"]))
    assert _outcome(plain, _measured("gsm8k", numbers, 8))["value"] == 0.001
    with pytest.raises(DataError, match="does not give the metric") as raised:
        _outcome(chat, _measured("gsm8k", {"exact_match,strict-match": 0.5}, 0))
    assert "flexible-extract" in str(raised.value)


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
    smoke = Path(__file__).parents[3] / "configs" / "smoke.yaml"

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
    stage = Stage("evaluate", None, (), "tsugiki.evaluation.evaluate:run", sources=files)
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
def test_a_library_that_a_task_lacks_is_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.minerva_math.utils", raising=False)
    with pytest.raises(EnvironmentError_, match="a library that a benchmark needs") as raised:
        check(HarnessConfig(tasks=["sus-chat-reasoning/MATH"]))
    assert "tsugiki[eval]" in str(raised.value)


@needs_harness
def test_japanese_bleu_needs_mecab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wmt20_en_ja.tsv").write_text("a\tb\n")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "MeCab" else found(name))
    with pytest.raises(EnvironmentError_, match="MeCab"):
        check(HarnessConfig(tasks=["wmt20_en_ja"], data=str(tmp_path)))


def test_where_an_exam_comes_from_is_told(tmp_path: Path) -> None:
    (tmp_path / "thai-questions-test.json").write_text("[]")
    config = HarnessConfig(
        tasks=["seallm-knowledge/M3Exam id", "seallm-knowledge/M3Exam th"], data=str(tmp_path)
    )
    assert missing_files(config) == [
        "indonesian-questions-dev.json", "indonesian-questions-test.json", "thai-questions-dev.json",
    ]  # fmt: skip
    told = origins(missing_files(config), config)
    assert len(told) == 2 and "not among M3Exam's languages" in told[0]
    assert told[1] == "thai-questions-dev.json: https://github.com/DAMO-NLP-SG/M3Exam"
    without = HarnessConfig(tasks=config.tasks, data=config.data, fewshot={"m3exam_id": 0, "m3exam_th": 0})
    assert missing_files(without) == ["indonesian-questions-test.json"]


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


@pytest.mark.slow
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

    from tsugiki.evaluation.scoring.language_model import load_language_model

    model = load_language_model(directory, device="cpu")
    right = 0
    for item in questions:
        context = f"{item['premise']} maka"
        totals = []
        for choice in (item["choice1"], item["choice2"]):
            start = len(model.tokenizer.encode(context)) + 1
            ids = torch.tensor([[1, *model.tokenizer.encode(f"{context} {choice}")]])
            with torch.no_grad():
                logs = torch.log_softmax(model.model(ids).logits[0].double(), -1)
            totals.append(sum(float(logs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])))
        right += totals[0] > totals[1]
    outcome = outcomes["xcopa_local_id"]
    assert outcome["value"] == pytest.approx(right / 6)
    assert (outcome["questions"], outcome["fewshot"], outcome["metric"]) == (6, 0, "accuracy")
    assert outcomes["mgsm_local_en"]["questions"] == 2
    assert 0 <= outcomes["mgsm_local_en"]["value"] <= 1


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Ids that a model is asked to continue; nothing is generated."""
    from lm_eval.models.huggingface import HFLM

    seen: list[list[int]] = []

    def record(self: HFLM, context: torch.Tensor, **_: object) -> torch.Tensor:
        seen.extend(context.tolist())
        return torch.cat([context, torch.full((context.shape[0], 1), 29_871)], dim=1)

    monkeypatch.setattr(HFLM, "_model_generate", record)
    return seen


@pytest.mark.slow
@needs_harness
@pytest.mark.parametrize(("name", "bos"), [("seallm-v2", 1), ("sus-chat", 0)])
@pytest.mark.parametrize("fewshot", [0, 1])
def test_a_chat_model_sees_its_own_template(
    tmp_path: Path, prompts: list[list[int]], name: str, bos: int, fewshot: int
) -> None:
    """The ids of the prompt are those that the chat format is trained on, BOS included or not."""
    from tokenizers import Tokenizer

    from tsugiki.experiment.text.chat import ChatTemplate, HuggingFaceEncoder

    directory = write_model(tmp_path / "model", max_positions=512)
    template = Path(__file__).parents[3] / "configs" / "chat_templates" / f"{name}.jinja"
    with pytest.raises(CheckpointError, match="no chat template"):
        check_chat_template(directory)
    shutil.copy(template, directory / "chat_template.jinja")
    check_chat_template(directory)
    items = [{"question": "One and one?", "answer": "2"}, {"question": "Two and two?", "answer": "4"}]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    config = HarnessConfig(
        tasks=["gsm8k_local_en"], data=str(tmp_path), fewshot={"gsm8k_local_en": fewshot}, batch_size=1
    )
    rest = {"dtype": "float32", "device": "cpu", "seed": 1}
    outcomes = evaluate_benchmarks(directory, check(config), config, chat=True, **rest)
    assert outcomes["gsm8k_local_en"]["chat"] is True
    chat = ChatTemplate.load(template, bos_token="<s>", eos_token="</s>", answers="continued")
    encoder = HuggingFaceEncoder(Tokenizer.from_file(str(directory / "tokenizer.json")))

    def asked(item: dict[str, str]) -> dict[str, str]:
        return {"role": "user", "content": f"Question: {item['question']}\nAnswer:"}

    wanted = []
    for item, other in (items, items[::-1]):
        example = [asked(other), {"role": "assistant", "content": other["answer"]}] if fewshot else []
        messages = [*example, asked(item)]
        encoded = chat.encode(
            messages, encoder, {"<unk>": 0, "<s>": 1, "</s>": 2}, add_generation_prompt=True
        )
        wanted.append(encoded.ids)
    assert sorted(prompts) == sorted(wanted)
    assert {ids.count(1) for ids in prompts} == {bos}
    prompts.clear()
    plain = evaluate_benchmarks(directory, check(config), config, **rest)
    assert plain["gsm8k_local_en"]["chat"] is False
    assert all(ids[0] == 1 for ids in prompts)
    assert not set(map(tuple, prompts)) & set(map(tuple, wanted))


def test_answers_leave_room_for_the_question() -> None:
    assert _answer_length(None, 4096) is None
    assert _answer_length(1024, 4096) == {"max_gen_toks": 1024}
    assert _answer_length(1024, 1024) == _answer_length(None, 1024) == {"max_gen_toks": 512}
    assert _answer_length(64, 1024) == {"max_gen_toks": 64}
    # GSM8K, MATH and BBH of SUS-Chat think before they answer.
    found = benchmarks(HarnessConfig(tasks=["sus-chat-reasoning"]))
    assert [item.maximum_new_tokens for item in found] == [1024, 1024, 1024]


def test_tables_that_were_measured_without_chat_stay_without() -> None:
    found = benchmarks(HarnessConfig(tasks=["sus-chat-reasoning", "sus-chat-other", "hellaswag"]))
    chatting = {item.suite for item in found if item.chat}
    assert chatting == {"sus-chat-reasoning", None}


@pytest.mark.slow
@needs_harness
def test_examples_of_an_exam_come_from_its_dev_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    def item(number: int, passage: list[str]) -> dict[str, object]:
        options = [f"A. a{number}", f"B. b{number}"]
        return {
            "question_text": f"q{number}",
            "background_description": passage,
            "answer_text": "B",
            "options": options,
        }

    (tmp_path / "thai-questions-test.json").write_text(json.dumps([item(1, ["P1"]), item(2, [])]))
    (tmp_path / "thai-questions-dev.json").write_text(json.dumps([item(3, ["P3"])]))
    seen: list[tuple[str, str]] = []

    def record(
        self: HFLM, requests: list[tuple[tuple[str, str], object, object]], **_: object
    ) -> list[tuple[float, bool]]:
        seen.extend(request[0] for request in requests)
        return [(0.0, False)] * len(requests)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", record)
    config = HarnessConfig(tasks=["m3exam_th"], data=str(tmp_path), fewshot={"m3exam_th": 1})
    directory = write_model(tmp_path / "model", max_positions=512)
    evaluate_benchmarks(directory, check(config), config, dtype="float32", device="cpu", seed=1)
    example = "P3\nq3\nA. a3\nB. b3\nคำตอบ: B\n\n"
    assert {context for context, _ in seen} == {
        f"{example}P1\nq1\nA. a1\nB. b1\nคำตอบ:", f"{example}q2\nA. a2\nB. b2\nคำตอบ:",
    }  # fmt: skip
    assert {answer for _, answer in seen} == {" A", " B"}


@pytest.mark.parametrize("task", [name for name in own_tasks() if name.startswith(("gsm8k", "math", "mgsm"))])
def test_a_chain_of_thought_is_not_cut_before_its_answer(task: str) -> None:
    settings = own_tasks()[task].generation_kwargs
    assert settings is not None
    reasoning = "Each has 3.\n\nTogether:\n3 + 3 = 6\n\nThe answer is \\boxed{6}."
    assert not any(stop in reasoning for stop in settings["until"])
    # A base model goes on with the next question, as examples have it: there it is stopped.
    question = own_tasks()[task].doc_to_text
    assert any(question.startswith(stop) for stop in settings["until"])
    assert settings["max_gen_toks"] >= 512


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
    assert shown_benchmarks(artefacts, []) == []
    measured = {
        name: {"swallow-ja/JSQuAD": outcome(value)} for name, value in (("base", 0.7), ("result", 0.8))
    }
    artefacts = Artefacts(**{**vars(artefacts), "results": {"benchmarks": measured}})
    content = benchmarks_of(artefacts, ["Swallow 7B"])
    for expected in ("0.7000", "0.8000", "[0.6804, 0.7196]", "Swallow 7B", "0.8573", "JSQuAD 4 (100)"):
        assert expected in content
    assert "Swallow 70B" not in content
    assert "chat template" not in content
    measured["result"]["swallow-ja/JSQuAD"]["chat"] = True
    assert "Asked in their chat template: result." in benchmarks_of(artefacts, ["Swallow 7B"])


OWN = """
task: capitals
title: Capitals
data:
  format: json
  file: capitals.jsonl
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 8}
score: capital_scores:first_letter
answers: answer
fewshot: 1
chat: false
"""
SCORES = """
def first_letter(written, answers):
    return float(written[:1] in {answer[:1] for answer in answers})
"""


@pytest.fixture
def capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own task: a YAML file, a module with its score, and its data."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "capitals.yaml").write_text(OWN)
    (folder / "capital_scores.py").write_text(SCORES)
    items = [{"question": f"Capital of {land}?", "answer": city} for land, city in (("A", "X"), ("B", "Y"))]
    (folder / "capitals.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "capital_scores", raising=False)
    return folder


@needs_harness
def test_a_task_of_the_users_own(capitals: Path, tmp_path: Path) -> None:
    path = capitals / "capitals.yaml"
    config = HarnessConfig(tasks=[str(path)], data=str(capitals))
    (item,) = check(config)
    assert (item.task, item.title, item.fewshot, item.chat) == ("capitals", "Capitals", 1, False)
    files = data_files(config)
    assert files == [path, capitals / "capital_scores.py", capitals / "capitals.jsonl"]
    directory = write_model(tmp_path / "model", max_positions=64)
    outcomes = evaluate_benchmarks(
        directory, [item], config, dtype="float32", device="cpu", seed=1, chat=True
    )
    found = outcomes["capitals"]
    assert (found["metric"], found["questions"], found["fewshot"], found["chat"]) == (
        "first_letter",
        2,
        1,
        False,
    )
    assert 0.0 <= found["value"] <= 1.0


def test_a_task_of_the_users_own_by_address(capitals: Path) -> None:
    (capitals / "my_tasks.py").write_text(
        f"import yaml\nCAPITALS = {{**yaml.safe_load({OWN!r}), 'task': 'others'}}\n"
    )
    config = HarnessConfig(tasks=["my_tasks:CAPITALS", "hellaswag"], data=str(capitals))
    assert [item.task for item in benchmarks(config)] == ["others", "hellaswag"]
    assert [path.name for path in data_files(config)] == [
        "capital_scores.py",
        "my_tasks.py",
        "capitals.jsonl",
    ]
    with pytest.raises(ConfigError, match="has no such name"):
        benchmarks(HarnessConfig(tasks=["my_tasks:CAPITOLS"]))
    with pytest.raises(ConfigError, match="cannot be imported"):
        benchmarks(HarnessConfig(tasks=["no_such_module_at_all:X"]))


def test_no_task_of_ones_own_adds_nothing_to_the_key(tmp_path: Path) -> None:
    assert data_files(HarnessConfig(tasks=["swallow-ja", "hellaswag"])) == []
    assert data_files(HarnessConfig(tasks=["swallow-ja", "hellaswag"], data=str(tmp_path))) == []


def test_all_variants_by_the_name_of_their_file() -> None:
    found = benchmarks(HarnessConfig(tasks=["m3exam"]))
    assert [item.task for item in found] == [f"m3exam_{name}" for name in ("en", "zh", "vi", "th", "id")]
    assert found[3].title == "M3Exam th"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("score: capital_scores:first_letter", "score: charcter_f1", "did you mean 'character_f1'"),
        ("score: capital_scores:first_letter", "score: accuracy", "not for tasks of this type"),
        ("format: json", "format: jsn", "did you mean 'json'"),
        ("format: json", "format: tsv", "missing a required(.|\n)*columns"),
        ("format: json", "format: json\n  options: {language: en}", "unexpected keyword argument 'language'"),
        ("answers: answer", "answer: answer", "answer: Extra inputs"),
        ("answers: answer\n", "", "says under `answers`"),
        ("task: capitals", "task: jsquad", "two benchmark tasks of one name"),
        ("data:", "data: [", "unreadable benchmark task"),
        (OWN, "- 1", "not a benchmark task(.|\n)*a mapping"),
        (OWN, OWN + "variants: [en]", "variants: {name"),
    ],
)
def test_a_task_file_that_is_wrong_is_named(capitals: Path, old: str, new: str, message: str) -> None:
    path = capitals / "capitals.yaml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError, match=message) as raised:
        benchmarks(HarnessConfig(tasks=[str(path)]))
    assert "capitals" in str(raised.value)
    with pytest.raises(ConfigError, match="no such file of a benchmark task"):
        benchmarks(HarnessConfig(tasks=["nowhere.yaml"]))
