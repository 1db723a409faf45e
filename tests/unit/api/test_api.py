"""The Python interface: cheap to import, complete, and its mistakes have names. docs/api.md is run by tests/e2e."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tsugiki
from tsugiki.experiment.run.digest import ExternalDigests
from tsugiki.pipeline import _source_files
from tsugiki.results import CorpusReport, Evaluation, Run

ROOT = Path(__file__).resolve().parents[3]


def test_importing_is_cheap_and_changes_nothing() -> None:
    code = (
        "import os, sys; before = dict(os.environ); modules = set(sys.modules); import tsugiki; dir(tsugiki)\n"
        "print(dict(os.environ) == before, sorted({name.split('.')[0] for name in set(sys.modules) - modules} & "
        "{'torch', 'numpy', 'pydantic', 'yaml', 'typer', 'pandas'}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "True []"


def test_every_name_is_there_and_on_the_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in tsugiki.__all__:
        assert getattr(tsugiki, name) is not None
        assert name in dir(tsugiki)
        assert name in page
    assert set(tsugiki.__all__) == set(tsugiki._HOME)
    assert tsugiki.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tsugiki.nonsense


def test_a_changed_experiment_leaves_the_first_alone() -> None:
    experiment = tsugiki.load_experiment("smoke", ["seed=7"], values={"run_dir": Path("elsewhere")})
    assert (experiment.config.seed, experiment.run_dir) == (7, Path("elsewhere"))
    other = experiment.with_values(
        {
            "train.optimizer.learning_rate": 1e-3,
            "corpus.sources.fixture-ja.weight": 2.5,
            "tokenizer.extend": None,
            "train.parallel": {"data": 2},
        }
    )
    assert other.config.train.optimizer.learning_rate == 1e-3
    assert other.config.tokenizer.extend is None
    assert other.config.train.parallel.tensor == 1
    assert [s.weight for s in other.config.corpus.sources if s.name == "fixture-ja"] == [2.5]
    assert experiment.config.tokenizer.extend is not None
    assert experiment.config.train.parallel.tensor == 2
    assert "smoke" in repr(other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.sequence_length": 512}, "sequences are longer"),
        ({"train.nonsense": 1}, "unknown key 'train.nonsense'[\\s\\S]*given in Python"),
        ({"name.deeper": 1}, "goes below a value that has no keys"),
        ({"corpus.sources.nope.weight": 1}, "no such item of the list"),
        ({"train.precision": "fp99"}, "wrong value for 'train.precision'[\\s\\S]*given in Python"),
    ],
)
def test_wrong_values_are_errors_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(tsugiki.TsugikiError, match=message):
        tsugiki.load_experiment("smoke").with_values(values)


def test_a_run_that_is_not_there_or_not_finished(tmp_path: Path) -> None:
    with pytest.raises(tsugiki.TsugikiError, match="no run here"):
        tsugiki.open_run(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("name: x\n")
    run = tsugiki.open_run(tmp_path)
    assert repr(run).endswith("0 of 8 stages complete)")
    assert run.config == {"name": "x"}
    assert run.manifests == {}
    for ask, stage in (
        (lambda: run.metrics(), "train"), (lambda: run.corpus_report, "corpus"), (lambda: run.evaluation, "evaluate"),
        (lambda: run.tokenizer_report, "tokenizer"), (lambda: run.page, "report"),
    ):  # fmt: skip
        with pytest.raises(tsugiki.TsugikiError, match=f"no result of the stage '{stage}'"):
            ask()
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "results.json").write_text("{")
    with pytest.raises(tsugiki.TsugikiError, match="unreadable report"):
        _ = run.evaluation


def test_metrics_after_a_restart_and_while_a_line_is_written(tmp_path: Path) -> None:
    (tmp_path / "train.partial").mkdir()
    lines = [
        {"step": 2, "train/loss": 3.0}, {"step": 4, "train/loss": 2.0}, {"step": 4, "validation/loss": 2.5},
        {"phase": "validation"}, {"step": 4, "train/loss": 1.9},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "tra'
    (tmp_path / "train.partial" / "metrics.jsonl").write_text(text)
    frame = Run(tmp_path).metrics()
    assert frame.index.tolist() == [2, 4]
    assert frame["train/loss"].tolist() == [3.0, 1.9]
    assert Run(tmp_path).metrics("validation/")["validation/loss"].tolist() == [2.5]


def test_reports_as_tables(tmp_path: Path) -> None:
    amount = {"documents": 3, "bytes": 30}
    source = {"name": "a", "language": "ja", "kind": "text", "dropped": {"x.y": {"documents": 1, "bytes": 5}}}
    source |= dict.fromkeys(("read", "kept", "train", "heldout"), amount)
    (tmp_path / "report.json").write_text(
        json.dumps({"sources": [source, {**source, "name": "b", "dropped": {}}]})
    )
    report = CorpusReport.load(tmp_path)
    assert report.sources["a"].dropped["x.y"].documents == 1
    assert report.dropped().to_dict() == {"a": {"x.y": 1}, "b": {"x.y": 0}}
    assert report.table().loc["b", "kept_bytes"] == 30
    assert repr(report) == "CorpusReport(2 sources, 6 of 6 documents kept)"
    results = {
        "documents": {"ja": 2}, "base": {"bits_per_byte": {"ja": 2.0}}, "result": {"bits_per_byte": {"ja": 1.5}},
        "difference": {"ja": {"bits_per_byte": -0.5, "interval": None}},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    evaluation = Evaluation.load(tmp_path)
    assert evaluation.languages["ja"].interval is None
    assert evaluation.table().loc["ja", "difference"] == -0.5


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        ({"th": "th.txt"}, {"sise": 3}, "unknown key"),
        ({}, {}, "at least 1|nothing"),
        ("nowhere", {}, "no corpus here"),
    ],
)
def test_extend_tokenizer_refuses_and_leaves_nothing(
    texts, arguments, message, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("th.txt").write_text("สวัสดี\n" * 30, encoding="utf-8")
    with pytest.raises(tsugiki.TsugikiError, match=message):
        tsugiki.extend_tokenizer("base", texts, "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["th.txt"]
    Path("out").mkdir()
    with pytest.raises(tsugiki.TsugikiError, match="the output directory exists"):
        tsugiki.extend_tokenizer("base", {"th": "th.txt"}, "out")


def test_shipped_sources_have_one_name_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of the checkout stays finished when it is looked at from elsewhere, or from a wheel."""
    digests = []
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        files = _source_files(tsugiki.load_experiment("smoke").config.corpus)
        assert len(files) == 33
        digests.append(ExternalDigests(tmp_path / "cache").digest(files))
    assert digests[0] == digests[1]
