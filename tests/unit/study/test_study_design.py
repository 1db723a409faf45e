"""The study's file, its designs, and what is refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy_study

from tsugiki.experiment.errors import ConfigError
from tsugiki.study.config import StudyConfig, load_study, study_of_options
from tsugiki.study.design import designed, trial_name
from tsugiki.study.trials import make_study


def config(**options: Any) -> StudyConfig:
    return StudyConfig(name="s", experiment="toy.yaml", **options)


def test_grid_is_every_combination_in_order() -> None:
    found = designed(config(grid={"train.rate": [1e-4, 3e-4], "train.replay": [0, 0.5, 1]}))
    assert len(found) == 6
    assert next(iter(found.values())) == {"train.rate": 1e-4, "train.replay": 0}
    assert list(found)[1] == "rate-0.0001_replay-0.5"


def test_random_draws_stay_within_their_bounds_and_begin_alike() -> None:
    keys = {
        "a.rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "a.size": {"low": 3, "high": 9, "integer": True},
        "a.kind": {"choices": ["x", {"en": 1}]},
    }
    few = designed(config(random={"trials": 5, "keys": keys}))
    many = designed(config(random={"trials": 200, "keys": keys}))
    assert list(many)[: len(few)] == list(few)
    rates = [values["a.rate"] for values in many.values()]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert 60 < sum(rate < 3.16e-4 for rate in rates) < 140  # half of them, on the logarithm
    assert {values["a.size"] for values in many.values()} == set(range(3, 10))
    assert list(designed(config(random={"trials": 5, "seed": 7, "keys": keys}))) != list(few)


def test_names_tell_values_apart_and_fit_a_folder() -> None:
    assert trial_name({"a.weights": {"ja": 1}}) != trial_name({"a.weights": {"ja": 2}})
    assert trial_name({"a": "x y"}) != trial_name({"a": "x_y"})
    assert trial_name({"corpus.size": 1, "tokenizer.size": 2}) == "corpus.size-1_tokenizer.size-2"
    long = trial_name({f"section.key{number}": 0.123456 for number in range(20)})
    assert len(long) <= 80 and "/" not in long
    assert trial_name({"a": -1e-5}) == "a--1e-05"


def test_options_of_the_command_line() -> None:
    study = study_of_options(Path("toy.yaml"), ["a.b=1,2,4", "c=x,y", "d=[1,2]", "e={f: 1}"])
    assert study.grid == {"a.b": [1, 2, 4], "c": ["x", "y"]}
    assert study.set == {"d": [1, 2], "e": {"f": 1}}
    assert study.name == "toy-sweep"
    for options, message in (
        ([], "nothing to sweep"),
        (["a=1"], "nothing to sweep"),
        (["a=1,2", "a=3"], "a key twice"),
        (["a"], "malformed"),
    ):
        with pytest.raises(ConfigError, match=message):
            study_of_options(Path("toy.yaml"), options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {a: [1, 2]}\ntrials: [{a: 1}]", "one of grid, trials and random, got grid and trials"),
        ("set: {a: 1}", "got none"),
        ("grid: {a: [1, 1]}", "a: 1 twice"),
        ("trials: [{a: 1}, {a: 1}]", "twice"),
        ("grid: {a: [1, 2]}\nset: {a: 3}", "a: contradicts a in set"),
        ("grid: {a.b: [1, 2], a: [{b: 3}]}", "a.b: contradicts a in what trials differ in"),
        ("grid: {run_dir: [x, y]}", "the study sets"),
        ("grid: {a: []}", "at least 1 item"),
        ("random: {trials: 2, keys: {a: {low: 2, high: 1}}}", "low below high"),
        ("random: {trials: 2, keys: {a: {low: 0, high: 1, log: true}}}", "above 0"),
        ("random: {trials: 2, keys: {a: {low: 0}}}", "either choices"),
        ("grid: {a: [1, 2]}\nobjective: {minimize: {}}", "objective.minimize"),
        ("grid: {a: [1, 2]}\nresurces: {}", "did you mean 'resources'"),
    ],
)
def test_contradictions_are_refused_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(f"name: s\nexperiment: toy.yaml\n{text}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(tmp_path / "study.yaml")
    assert caught.value.exit_code == 2


def test_the_experiment_beside_the_study_goes_first(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("name: toy\n")
    (tmp_path / "study.yaml").write_text("name: s\nexperiment: toy.yaml\ngrid: {tokens: [1, 2]}\n")
    study = load_study(tmp_path / "study.yaml", ["name=other"])
    assert study.experiment == str(tmp_path / "toy.yaml") and study.name == "other"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"train.log_every": [1, 2]}}, "no stage reads this key"),
        ({"grid": {"train.log_every": [1, 2], "train.rate": [1, 2]}}, "no stage reads this key"),
        (
            {"trials": [{"train.rate": 1.0}, {"train.rate": 2.0, "train.log_every": 5}]},
            "no stage reads this key",
        ),
        (
            {
                "trials": [
                    {"train.rate": 1.0},
                    {"train.rate": 1.0, "train.replay": 0.5},
                    {"train.replay": 0.1},
                ]
            },
            "would make the same",
        ),
        ({"grid": {"train.ratte": [1, 2]}}, "trial ratte-1: unknown key 'train.ratte'"),
        ({"grid": {"train.rate": [1, "fast"]}}, "trial rate-fast: wrong value"),
        ({"grid": {"evaluate.text": ["x", "y"]}}, "cannot be compared"),
        ({"grid": {"corpus.heldout": ["x", "y"]}}, "cannot be compared"),
    ],
)
def test_what_no_study_can_answer_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "toy.yaml").write_text("name: toy\n")
    study = StudyConfig(
        name="s", experiment=str(tmp_path / "toy.yaml"), run_dir=str(tmp_path / "s"), **options
    )
    with pytest.raises(ConfigError, match=message):
        make_study(study, toy_study.load)
    assert not (tmp_path / "s").exists()
