"""Scores, prompts and files of published tables against what their authors' own code gave.

The tables of ``tests/fixtures/benchmarks`` were written by ``benchmarks/published_scores.py``, which says from which code.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki.evaluation.benchmarks.harness import _process, _task, check
from tsugiki.evaluation.benchmarks.listing import every_benchmark, listing
from tsugiki.evaluation.benchmarks.scores import find_score
from tsugiki.evaluation.benchmarks.suites import data_files, missing_files, suites
from tsugiki.evaluation.benchmarks.task import own_tasks
from tsugiki.evaluation.benchmarks.task_data import records_of, wanted_form
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.errors import DataError, EnvironmentError_

FIXTURES = Path(__file__).parents[2] / "fixtures" / "benchmarks"
PROMPTS = {
    task: wanted
    for path in sorted(FIXTURES.glob("*_prompts.json"))
    for task, wanted in json.loads(path.read_text(encoding="utf-8")).items()
}
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed"
)


def table(name: str) -> list[list[Any]]:
    """Cases and values of one comparison: text written, right answer, values."""
    cases: list[list[Any]] = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return cases


@pytest.mark.parametrize(
    ("name", "scores"), [("llm_jp", ("character_ratio", "first_line_exact")), ("mgsm_ja", ("last_integer",))]
)
def test_scores_are_those_of_the_authors(name: str, scores: tuple[str, ...]) -> None:
    cases = table(name)
    assert len(cases) >= 1000
    for given, right, *values in cases:
        assert [find_score(score).function(given, [right]) for score in scores] == values, (given, right)


def test_rouge_and_bleu_are_those_of_the_authors_on_their_words() -> None:
    """What needs no segmenter; see the next test."""
    from tsugiki.evaluation.benchmarks.scores.rouge import rouge2

    cases = table("rouge2_ja")
    assert len(cases) >= 1000
    for _, _, value, given, right in cases:
        assert rouge2(given.split(), right.split()) == value, (given, right)


@needs_harness
def test_bleu_is_that_of_the_authors_on_their_words() -> None:
    """Theirs was sacrebleu 1.5.0; ours is the one installed."""
    cases = table("bleu_ja_en")
    assert sum(len(case[0]) for case in cases) >= 1000
    for _, _, value, given, right in cases:
        found = find_score("bleu").function(list(zip(right, given, strict=True)))
        assert found == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", ["rouge2_mecab", "bleu_nagisa"])
def test_words_are_those_of_the_authors(name: str) -> None:
    """Skipped only where the extra `eval` (and with it MeCab's and nagisa's dictionaries) is missing."""
    score = find_score(name)
    assert score.requires is not None
    if any(importlib.util.find_spec(module) is None for module in score.requires[0].split()):
        pytest.skip("the extra `eval` is not installed")
    if name == "rouge2_mecab":
        for given, right, value, *_ in table("rouge2_ja"):
            assert score.function(given, [right]) == value
    else:
        for given, right, value, *_ in table("bleu_ja_en")[:10]:
            assert score.function(list(zip(right, given, strict=True))) == pytest.approx(value, abs=1e-9)


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


@needs_harness
@pytest.mark.parametrize("task", PROMPTS)
def test_prompts_are_those_of_the_authors(tmp_path: Path, task: str) -> None:
    from lm_eval.api.task import ConfigurableTask

    wanted = PROMPTS[task]
    write_files(tmp_path, wanted["files"])
    built = ConfigurableTask(config=_task(own_tasks()[task], tmp_path, wanted["fewshot"] > 0))
    built.set_config(key="num_fewshot", value=wanted["fewshot"])
    built.set_fewshot_seed(1)
    built.build_all_requests(rank=0, world_size=1)
    (context, settings), *_ = [instance.args for instance in built.instances]
    assert context == wanted["prompt"]
    assert settings["max_gen_toks"] == wanted["answer_tokens"]
    config = HarnessConfig(tasks=[task], data=str(tmp_path), fewshot={task: wanted["fewshot"]})
    assert missing_files(config) == []
    if task not in ("xlsum_ja", "wmt20_en_ja"):  # their scores need libraries
        assert [item.task for item in check(config)] == [task]


def test_an_answer_keeps_what_counts_in_the_authors_code() -> None:
    """A line break in front is an empty answer there, and all answers of NIILC are one."""
    document = {"output": "東京,大阪"}
    rest = {"score": "character_ratio", "answers": "output"}
    assert _process(document, ["東京,大阪\n質問"], **rest) == {"character_ratio": 1.0}
    assert _process(document, ["\n東京,大阪"], **rest) == {"character_ratio": 0.0}
    assert _process(document, ["東京"], **rest) == {"character_ratio": pytest.approx(0.57)}


def test_niilc_as_its_authors_publish_it(tmp_path: Path) -> None:
    question = "<question id='1'><text> 首都は？ </text><answers>{}</answers><meta/></question>"
    answers = ["<answer>東京</answer><answer/><answer>東京都</answer>", "<answer>-</answer>"]
    text = "".join(question.format(item) for item in answers)
    (tmp_path / "NIILC-ECQA2015_test.xml").write_text(f"<questions>{text}</questions>", encoding="utf-8")
    data = own_tasks()["niilc"].data
    (record,) = records_of(tmp_path, wanted_form(tmp_path, data), {})
    assert (record["input"], record["output"]) == ("質問：首都は？", "東京,東京都")
    (tmp_path / "NIILC-ECQA2015_test.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><questions/>')
    with pytest.raises(DataError, match="document type declaration"):
        records_of(tmp_path, data, {})


def test_other_forms_of_a_file_are_read_where_the_published_one_is_not_there(tmp_path: Path) -> None:
    config = HarnessConfig(tasks=["niilc"], data=str(tmp_path))
    assert missing_files(config) == ["NIILC-ECQA2015_test.xml"]
    (tmp_path / "niilc.jsonl").write_text('{"question": "首都は？", "answers": ["東京", "東京都"]}\n')
    data = own_tasks()["niilc"].data
    (record,) = records_of(tmp_path, wanted_form(tmp_path, data), {})
    assert record["output"] == "東京,東京都"
    assert [path.name for path in data_files(config)] == ["niilc.jsonl"]
    samples = {
        "samples": [{"input": "質問：何？", "output": "a"}],
        "few_shots": [{"input": "b", "output": "c"}] * 4,
    }
    (tmp_path / "niilc.json").write_text(json.dumps(samples))
    assert records_of(tmp_path, wanted_form(tmp_path, data), {}) == [{"input": "質問：何？", "output": "a"}]
    assert data.examples is not None
    assert len(records_of(tmp_path, wanted_form(tmp_path, data.examples), {})) == 4


@needs_harness
def test_examples_that_cannot_be_had_are_an_error_before_a_model_is_loaded(tmp_path: Path) -> None:
    config = HarnessConfig(tasks=["swallow-ja/JEMHopQA"], data=str(tmp_path))
    write_files(tmp_path, PROMPTS["jemhopqa"]["files"])
    (tmp_path / "jemhopqa-train.json").unlink()
    with pytest.raises(DataError, match=r"files of benchmarks are missing(.|\n)*jemhopqa-train.json"):
        check(config)
    (tmp_path / "jemhopqa-train.json").write_text(json.dumps([{"question": "q", "answer": "a"}] * 9))
    with pytest.raises(DataError, match="examples of the published table are not in this file"):
        check(config)
    write_files(tmp_path, PROMPTS["jemhopqa"]["files"])
    more = HarnessConfig(tasks=config.tasks, data=config.data, fewshot={"jemhopqa": 5})
    with pytest.raises(DataError, match=r"too few examples(.|\n)*got: *4"):
        check(more)


def test_translations_of_wmt_in_either_form(tmp_path: Path) -> None:
    data = own_tasks()["wmt20_ja_en"].data
    sgm = '<{0}set setid="newstest2020"><doc docid="1"><p>\n<seg id="1">{1} </seg>\n<seg id="2">b</seg>\n</p></doc></{0}set>\n'
    (tmp_path / "newstest2020-jaen-src.ja.sgm").write_text(sgm.format("src", "猫。"), encoding="utf-8")
    (tmp_path / "newstest2020-jaen-ref.en.sgm").write_text(sgm.format("ref", "A cat."), encoding="utf-8")
    wanted = [{"source": "猫。", "reference": "A cat."}, {"source": "b", "reference": "b"}]
    assert records_of(tmp_path, wanted_form(tmp_path, data), {}) == wanted
    (tmp_path / "wmt20.ja-en.src").write_text("猫。\n\u2028b\n", encoding="utf-8")
    assert wanted_form(tmp_path, data).file.endswith(".sgm")  # half a pair is none
    (tmp_path / "wmt20.ja-en.ref").write_text("A cat.\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"do not belong together(.|\n)*1 lines(.|\n)*2, as in wmt20.ja-en.src"
    ):
        records_of(tmp_path, wanted_form(tmp_path, data), {})


def test_worked_examples_are_read_without_running_their_file(tmp_path: Path) -> None:
    examples = own_tasks()["mgsm_local_ja"].data.examples
    assert examples is not None
    (tmp_path / "exemplars.py").write_text(
        "raise SystemExit\nMGSM_EXEMPLARS = {'ja': {'1': {'q': 'Q', 'a': 'A'}}}\n"
    )
    assert records_of(tmp_path, examples, {}) == [{"question": "Q", "answer": "A"}]
    (tmp_path / "exemplars.py").write_text("MGSM_EXEMPLARS = open('x')\n")
    with pytest.raises(DataError, match="not a file of the form `mgsm_exemplars`"):
        records_of(tmp_path, examples, {})


@needs_harness
def test_a_segmenter_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, PROMPTS["xlsum_ja"]["files"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "neologdn" else find(name))
    with pytest.raises(EnvironmentError_, match=r"neologdn(.|\n)*pip install 'tsugiki\[eval\]'"):
        check(HarnessConfig(tasks=["xlsum_ja"], data=str(tmp_path)))


@needs_harness
def test_the_file_of_another_benchmark_is_an_error_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "jemhopqa-dev.json").write_text(json.dumps([{"premise": "p", "label": 1}]))
    with pytest.raises(DataError, match=r"another benchmark(.|\n)*'question' is undefined"):
        check(HarnessConfig(tasks=["jemhopqa"], data=str(tmp_path)))


def test_files_as_their_authors_publish_them(tmp_path: Path) -> None:
    """MATH is a folder of objects over several lines, TyDiQA one file of all languages."""
    for place, number in (("algebra/10", 10), ("algebra/2", 2), ("geometry/1", 1)):
        item = {"problem": f"p{number}", "solution": f"so $\\boxed{{{number}}}$"}
        write_files(tmp_path, {f"MATH/test/{place}.json": json.dumps(item, indent=4)})
    config = HarnessConfig(tasks=["math_local_en"], data=str(tmp_path))
    records = records_of(tmp_path, wanted_form(tmp_path, own_tasks()["math_local_en"].data), {})
    assert [record["problem"] for record in records] == ["p2", "p10", "p1"]
    assert records[1]["answer"] == "so $\\boxed{10}$"
    assert [path.name for path in data_files(config)] == ["2.json", "10.json", "1.json"]
    questions = [
        {"id": f"{language}-1-0", "question": "q", "answers": [{"text": language}]}
        for language in ("indonesian", "thai")
    ]
    tydiqa = {"data": [{"paragraphs": [{"context": "c", "qas": questions}]}]}
    write_files(tmp_path, {"tydiqa-goldp-v1.1-dev.json": json.dumps(tydiqa)})
    data = own_tasks()["tydiqa_local_id"].data
    assert [record["answers"] for record in records_of(tmp_path, wanted_form(tmp_path, data), {})] == [
        ["indonesian"]
    ]
    write_files(
        tmp_path, {"tydiqa_id_validation.jsonl": '{"context": "c", "question": "q", "answer": ["a", "b"]}\n'}
    )
    assert [record["answers"] for record in records_of(tmp_path, data.instead[0], {})] == [["a", "b"]]


def test_the_list_says_what_is_wanted_where_from_and_whether_it_is_here(tmp_path: Path) -> None:
    write_files(tmp_path, PROMPTS["jsquad"]["files"])
    (tmp_path / "jsquad-train.json").unlink()
    lines = list(listing(HarnessConfig(tasks=["swallow-ja/JSQuAD", "hellaswag"], data=str(tmp_path))))
    assert lines[:4] == [
        "swallow-ja/JSQuAD",
        "  asked     jsquad, 4 examples; character_ratio",
        "  file      jsquad-valid.json: here",
        "  examples  jsquad-train.json (or jsquad.json): missing",
    ]
    assert lines[4].startswith("  from      https://github.com/yahoojapan/JGLUE")
    assert lines[5] == "  licence   CC BY-SA 4.0"
    assert lines[-1] == "  files     fetched from the hub by lm-evaluation-harness"
    every = list(listing(every_benchmark(None)))
    columns = [f"{name}/{column['title']}" for name, suite in suites().items() for column in suite["columns"]]
    assert [line for line in every if not line.startswith(" ")][: len(columns)] == columns
    assert "xquad_local_th" in every
    assert sum(line.startswith("  differs") for line in every) > 20
