"""Suites and our own tasks: what is asked, how, and from which files; published cards' shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsugiki.evaluation.benchmarks.harness import (
    _answer_length,
)
from tsugiki.evaluation.benchmarks.suites import benchmarks, data_files, missing_files, origins, suites
from tsugiki.evaluation.benchmarks.task import own_tasks
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pipeline import load_experiment


def test_suites_are_rectangular_and_own_tasks_are_known() -> None:
    for suite in suites().values():
        for values in suite["published"].values():
            assert len(values) == len(suite["columns"])
        assert suite["unit"] in (1, 100)
    # Spot checks against the cards.
    assert suites()["swallow-ja"]["published"]["Swallow 7B"][2] == 0.5968
    assert suites()["seallm-math"]["published"]["SeaLLM-7B-v2"][0] == 78.2
    assert own_tasks()["m3exam_th"].data.file == "thai-questions-test.json"
    assert own_tasks()["wmt20_en_ja"].score == "bleu_nagisa"


def test_suites_open_and_examples_can_be_changed() -> None:
    config = HarnessConfig(tasks=["swallow-ja", "hellaswag"], fewshot={"jsquad": 1})
    found = benchmarks(config)
    assert len(found) == 9
    by_task = {item.task: item for item in found}
    assert (by_task["jsquad"].fewshot, by_task["niilc"].fewshot, by_task["hellaswag"].fewshot) == (1, 4, None)
    assert by_task["jsquad"].key == "swallow-ja/JSQuAD" and by_task["hellaswag"].key == "hellaswag"


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
    assert told[1].startswith("thai-questions-dev.json: https://cutt.ly/m3exam-data")
    without = HarnessConfig(tasks=config.tasks, data=config.data, fewshot={"m3exam_id": 0, "m3exam_th": 0})
    assert missing_files(without) == ["indonesian-questions-test.json"]


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


@pytest.mark.parametrize(
    "task",
    [name for name in own_tasks() if name.startswith(("gsm8k", "math", "mgsm")) and name != "mgsm_local_ja"],
)
def test_a_chain_of_thought_is_not_cut_before_its_answer(task: str) -> None:
    """MGSM in Japanese is cut at its first line, as the published table was."""
    settings = own_tasks()[task].generation_kwargs
    assert settings is not None
    reasoning = "Each has 3.\n\nTogether:\n3 + 3 = 6\n\nThe answer is \\boxed{6}."
    assert not any(stop in reasoning for stop in settings["until"])
    # A base model goes on with the next question, as examples have it: there it is stopped.
    question = own_tasks()[task].doc_to_text
    assert any(question.startswith(stop) for stop in settings["until"])
    assert settings["max_gen_toks"] >= 512


def test_no_task_of_ones_own_adds_nothing_to_the_key(tmp_path: Path) -> None:
    assert data_files(HarnessConfig(tasks=["swallow-ja", "hellaswag"])) == []
    assert data_files(HarnessConfig(tasks=["swallow-ja", "hellaswag"], data=str(tmp_path))) == []


def test_all_variants_by_the_name_of_their_file() -> None:
    found = benchmarks(HarnessConfig(tasks=["m3exam"]))
    assert [item.task for item in found] == [f"m3exam_{name}" for name in ("en", "zh", "vi", "th", "id")]
    assert found[3].title == "M3Exam th"
