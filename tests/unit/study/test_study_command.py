"""`tsugiki sweep` with the toy in the place of the experiment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import toy_study
from typer.testing import CliRunner

from tsugiki.cli.main import app
from tsugiki.experiment.errors import ConfigError, TsugikiError


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import tsugiki.pipeline
    import tsugiki.study.local

    monkeypatch.setattr(tsugiki.pipeline, "load_experiment", toy_study.load)
    monkeypatch.setattr(
        tsugiki.study.local.LocalRun.__init__,
        "__defaults__",
        (print, (sys.executable, str(toy_study.__file__), "run")),
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text("name: toy\n")
    return tmp_path


def sweep(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["sweep", *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_options_make_a_study_with_a_page(toys: Path) -> None:
    options = ["toy.yaml", "--set", "train.rate=1e-4,1e-3", "--set", "train.replay=1.0"]
    plan = sweep(*options, "--dry-run")
    assert "2 trials of toy.yaml" in plan and "takes  corpus, tokens of rate-1e-4" in plan
    assert "shared: 2 stages, made once and hard-linked 2 times" in plan
    assert not (toys / "runs").exists()
    with pytest.raises(TsugikiError, match="no trial of the study"):
        sweep(*options, "--page")
    text = sweep(*options)
    assert "best: rate-1e-" in text and "page: runs/toy-sweep/page/index.html" in text
    page = (toys / "runs/toy-sweep/page/index.html").read_bytes()
    assert "page" in sweep(*options, "--page")
    assert (toys / "runs/toy-sweep/page/index.html").read_bytes() == page


def test_a_study_file_with_a_failing_trial(toys: Path) -> None:
    (toys / "study.yaml").write_text(
        "name: s\nexperiment: toy.yaml\ntrials: [{train.rate: 1.0e-4}, {train.rate: 1.0, train.fail: true}]\n"
    )
    with pytest.raises(TsugikiError, match="1 of 2 trials are not done") as caught:
        sweep("study.yaml")
    assert "exit status 1 in corpus to evaluate" in str(caught.value)
    assert "rate-1.0_fail-True is missing" in (toys / "runs/s/page/index.html").read_text()
    with pytest.raises(ConfigError, match="no such configuration file"):
        sweep("nowhere.yaml", "--set", "a=1,2")
