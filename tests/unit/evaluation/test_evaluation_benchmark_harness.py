"""The harness: what it cannot do is said before a model is loaded, and what it does on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from evaluation_material import needs_harness, write_model

from tsugiki.evaluation.benchmarks.harness import (
    check,
    check_chat_template,
    evaluate_benchmarks,
)
from tsugiki.evaluation.benchmarks.suites import suites
from tsugiki.evaluation.benchmarks.task import own_tasks
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_


@pytest.mark.slow
@needs_harness
def test_every_task_of_every_suite_exists() -> None:
    columns = [column["task"] for suite in suites().values() for column in suite["columns"]]
    foreign = sorted({task for task in columns if task not in own_tasks()})
    assert [item.task for item in check(HarnessConfig(tasks=foreign))] == foreign


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
def test_japanese_bleu_needs_nagisa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wmt20_en_ja.tsv").write_text("a\tb\n")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nagisa" else found(name))
    with pytest.raises(EnvironmentError_, match="nagisa"):
        check(HarnessConfig(tasks=["wmt20_en_ja"], data=str(tmp_path)))


@needs_harness
def test_requests_that_cannot_be_met_fail_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such task") as raised:
        check(HarnessConfig(tasks=["helaswag"]))
    assert "hellaswag" in str(raised.value)
    with pytest.raises(ConfigError, match="read local files"):
        check(HarnessConfig(tasks=["jsquad"]))
    with pytest.raises(DataError, match="files of benchmarks are missing") as raised_data:
        check(HarnessConfig(tasks=["swallow-ja"], data=str(tmp_path)))
    assert "NIILC-ECQA2015_test.xml" in str(raised_data.value)


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


@pytest.mark.slow
@needs_harness
def test_examples_of_an_exam_come_from_its_dev_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.evaluation.benchmarks.shared_context import SharedContextLM

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
        self: SharedContextLM, requests: list[tuple[tuple[str, str], object, object]], **_: object
    ) -> list[tuple[float, bool]]:
        seen.extend(request[0] for request in requests)
        return [(0.0, False)] * len(requests)

    monkeypatch.setattr(SharedContextLM, "_loglikelihood_tokens", record)
    config = HarnessConfig(tasks=["m3exam_th"], data=str(tmp_path), fewshot={"m3exam_th": 1})
    directory = write_model(tmp_path / "model", max_positions=512)
    evaluate_benchmarks(directory, check(config), config, dtype="float32", device="cpu", seed=1)
    example = "P3\nq3\nA. a3\nB. b3\nคำตอบ: B\n\n"
    assert {context for context, _ in seen} == {
        f"{example}P1\nq1\nA. a1\nB. b1\nคำตอบ:", f"{example}q2\nA. a2\nB. b2\nคำตอบ:",
    }  # fmt: skip
    assert {answer for _, answer in seen} == {" A", " B"}
