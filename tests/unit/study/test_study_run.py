"""A study on this machine: what is shared is made once, failures follow the rule, a kill changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import toy_study

from tsugiki.experiment.errors import ConfigError, Interrupted
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.study.config import StudyConfig
from tsugiki.study.local import LocalRun, TrialState
from tsugiki.study.page import csv_table
from tsugiki.study.results import read_results
from tsugiki.study.trials import Study, make_study

COMMAND = (sys.executable, str(Path(toy_study.__file__)), "run")
RATES = [1e-4, 1e-3]


def study(folder: Path, **options: Any) -> Study:
    folder.mkdir(exist_ok=True)
    (folder / "toy.yaml").write_text("name: toy\n")
    options.setdefault("grid", {"train.rate": RATES, "train.replay": [0.0, 0.5]})
    config = StudyConfig(
        name="s", experiment=str(folder / "toy.yaml"), run_dir=str(folder / "runs" / "s"), **options
    )
    return make_study(config, toy_study.load)


def run(of: Study) -> dict[str, TrialState]:
    return dict(LocalRun(of, lambda line: None, COMMAND).run())


def states(found: dict[str, TrialState]) -> list[str]:
    return [state.state for state in found.values()]


def test_shared_stages_are_made_once_and_hard_linked(tmp_path: Path) -> None:
    """Two corpora, of which one has two token budgets: 2 corpora, 3 tokens, 4 trainings for 4 trials."""
    points = [("a", 1e6, 1e-4), ("a", 1e6, 1e-3), ("a", 2e6, 1e-4), ("b", 1e6, 1e-4)]
    trials = [dict(zip(("corpus.text", "tokens", "train.rate"), point, strict=True)) for point in points]
    of = study(tmp_path, trials=trials, grid={}, resources={"cores": 3})
    assert states(run(of)) == ["done"] * 4
    counted = Counter(stage for stage, _ in toy_study.made(of.directory))
    assert counted == {"corpus": 2, "tokens": 3, "train": 4, "evaluate": 4}
    files = [trial.run_dir / "corpus" / "deep" / "text" for trial in of.trials.values()]
    assert [path.read_text() for path in files] == ["a"] * 3 + ["b"]
    assert [path.stat().st_nlink for path in files] == [3] * 3 + [1]
    for trial in of.trials.values():
        manifest = Manifest.load(trial.run_dir / "corpus")
        assert manifest is not None and manifest.damage(trial.run_dir / "corpus") is None
    # again: nothing is left to do; one more rate: only what is new
    assert states(run(of)) == ["done"] * 4
    more = study(tmp_path, trials=[*trials, {**trials[0], "train.rate": 1e-2}], grid={})
    run(more)
    assert Counter(stage for stage, _ in toy_study.made(of.directory)) == counted + Counter(
        ["train", "evaluate"]
    )


def test_a_stage_of_another_key_is_not_taken(tmp_path: Path) -> None:
    of = study(tmp_path, grid={"train.rate": RATES})
    first, second = of.trials.values()
    run(of)
    (second.run_dir / "config.yaml").unlink()
    other = toy_study.load(
        tmp_path / "toy.yaml", values={"run_dir": str(second.run_dir), "corpus.text": "other"}
    )
    graph = other.graph(lambda line: None)
    graph.run(graph.select(None, "corpus"), other.config)
    assert (second.run_dir / "corpus" / "deep" / "text").read_text() == "other"
    assert (first.run_dir / "corpus" / "deep" / "text").read_text() == "text"


def test_units_of_a_stage_between_shared_ones(tmp_path: Path) -> None:
    of = study(tmp_path, grid={"tokens": [1.0, 2.0], "train.rate": RATES})
    found = [(unit.trial, unit.stages, unit.after) for unit in of.units]
    names = list(of.trials)
    assert found == [
        (names[0], ("corpus",), ()),
        (names[0], ("tokens",), (0,)),
        (names[0], ("train", "evaluate"), (1,)),
        (names[1], ("corpus", "tokens", "train", "evaluate"), (0, 1)),
        (names[2], ("corpus", "tokens"), (0,)),
        (names[2], ("train", "evaluate"), (4,)),
        (names[3], ("corpus", "tokens", "train", "evaluate"), (0, 4)),
    ]


def test_failed_trials(tmp_path: Path) -> None:
    trials = [
        {"train.rate": 1e-4, "train.fail": True},
        {"train.rate": 1e-3, "train.fail_once": True},
        {"train.rate": 1e-2},
    ]
    of = study(tmp_path, trials=trials, grid={}, failures={"attempts": 2}, resources={"cores": 1})
    found = run(of)
    assert states(found) == ["failed", "done", "done"]
    failed = next(iter(found.values()))
    assert "exit status 1 in train to evaluate" in failed.detail
    assert (of.directory / "logs" / f"{next(iter(found))}.log").read_text().count("diverged") == 2
    saved = json.loads((of.directory / "trials.json").read_text())
    assert [trial["state"] for trial in saved["trials"].values()] == states(found)
    stopping = study(
        tmp_path,
        trials=[*trials, {"train.rate": 0.1}],
        grid={},
        failures={"then": "stop"},
        resources={"cores": 1},
    )
    assert states(run(stopping)) == ["failed", "done", "done", "waiting"]


def test_trials_that_need_what_failed_are_blocked(tmp_path: Path) -> None:
    of = study(tmp_path, set={"corpus.fail": True}, failures={"attempts": 1})
    found = run(of)
    assert states(found) == ["failed", "blocked", "blocked", "blocked"]
    assert "corpus to tokens of" in list(found.values())[1].detail


def test_resources_bound_what_runs_at_once(tmp_path: Path) -> None:
    """Two of three trials fit; each sees its own GPU, and the third starts when one of them ends."""
    go = tmp_path / "go"
    of = study(
        tmp_path, grid={"train.rate": [*RATES, 1e-2]}, set={"train.wait_for": str(go)},
        resources={"cores": 8, "gpus": 2, "trial": {"cores": 2, "gpus": 1}},
    )  # fmt: skip
    started: list[list[int]] = []
    runner = LocalRun(of, lambda line: None, COMMAND)
    wait_for_one = runner._wait_for_one

    def watched(machine: Any) -> None:
        started.append([item.gpus[0] for item in runner._running])
        if len(runner._running) == 2:
            deadline = time.monotonic() + 600
            while len(list(of.directory.glob("*.waits"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert len(list(of.directory.glob("*.waits"))) == 2
            go.touch()
        wait_for_one(machine)

    runner._wait_for_one = watched  # type: ignore[method-assign]
    assert states(dict(runner.run())) == ["done"] * 3
    assert max(map(len, started)) == 2 and [0, 1] in started
    with pytest.raises(ConfigError, match="one trial takes more"):
        run(study(tmp_path, resources={"gpus": 1, "trial": {"gpus": 2}}))


SCRIPT = """
import sys
from pathlib import Path
import test_study_run as case
rates = {"train.rate": case.RATES}
case.run(case.study(Path(sys.argv[1]), grid=rates, set={"train.wait_for": sys.argv[2]}, resources={"cores": 2}))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_studies_end_as_others(tmp_path: Path, number: signal.Signals) -> None:
    """Killed while two trials train: nothing of it is left running, and the next run makes only what is missing."""
    never = tmp_path / "never"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(toy_study.__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(never)], env={**os.environ, "PYTHONPATH": path}
    )
    directory = tmp_path / "runs" / "s"
    deadline = time.monotonic() + 600
    while len(list(directory.glob("*.waits"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(ConfigError, match="another process works"):
        run(study(tmp_path, grid={"train.rate": RATES}))
    process.send_signal(number)
    process.wait(timeout=600)
    never.touch()
    of = study(tmp_path, grid={"train.rate": RATES}, set={"train.wait_for": str(never)})
    assert states(run(of)) == ["done"] * 2
    counted = Counter(stage for stage, _ in toy_study.made(directory))
    assert counted == {"corpus": 1, "tokens": 1, "train": 2, "evaluate": 2}
    # the same page as that of a study that was left alone, but for the seconds
    page = csv_table(read_results(of)).csv()
    alone = study(tmp_path / "alone", grid={"train.rate": RATES})
    for trial in alone.trials.values():
        rates = toy_study.known(trial.values["train.rate"], 0.5)
        toy_study.write_evaluation(trial.run_dir / "evaluate", rates)
    assert [line.split(",")[:-3] for line in page.splitlines()] == [
        line.split(",")[:-3] for line in csv_table(read_results(alone)).csv().splitlines()
    ]


def test_a_trial_that_is_told_to_stop_stops_the_study(tmp_path: Path) -> None:
    of = study(tmp_path, grid={"train.rate": RATES})
    asking = (sys.executable, "-c", "import sys; sys.exit(75)")
    with pytest.raises(Interrupted, match="asked to stop"):
        LocalRun(of, lambda line: None, asking).run()
