"""Benchmark tasks of the user's own: a YAML file, a mapping by address, and what is wrong with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from evaluation_material import needs_harness, write_model

from tsugiki.evaluation.benchmarks.harness import (
    check,
    evaluate_benchmarks,
)
from tsugiki.evaluation.benchmarks.suites import benchmarks, data_files
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.errors import ConfigError

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
