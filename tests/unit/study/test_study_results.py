"""What a study found: the best by the objective and its noise, the front, the page, what cannot be compared."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import toy_study

from tsugiki.experiment.errors import DataError
from tsugiki.study.config import StudyConfig
from tsugiki.study.page import csv_table, study_page, write_page
from tsugiki.study.prediction import predict
from tsugiki.study.results import StudyResults, read_results
from tsugiki.study.trials import Study, make_study

RATES, REPLAY = [1e-4, 3e-4, 1e-3], [0.0, 0.5, 1.0]


def measured(folder: Path, **options: Any) -> Study:
    """A study whose trials have been evaluated, without running them."""
    folder.mkdir(exist_ok=True)
    (folder / "toy.yaml").write_text("name: toy\n")
    options.setdefault("grid", {"train.rate": RATES, "train.replay": REPLAY})
    config = StudyConfig(name="s", experiment=str(folder / "toy.yaml"), run_dir=str(folder / "s"), **options)
    study = make_study(config, toy_study.load)
    for trial in study.trials.values():
        values = {key.partition(".")[2]: value for key, value in trial.values.items()}
        toy_study.write_evaluation(trial.run_dir / "evaluate", toy_study.known(**values))
    return study


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return read_results(measured(tmp_path_factory.mktemp("study")))


def test_bits_per_byte_and_the_best(results: StudyResults) -> None:
    for trial, (rate, replay) in zip(results.trials, itertools.product(RATES, REPLAY), strict=True):
        known = toy_study.known(rate, replay)
        assert trial.bits_per_byte == pytest.approx(known)
        assert trial.difference["ja"] == pytest.approx(known["ja"] - toy_study.BASE["ja"])
        assert (
            trial.interval["ja"] is not None
            and trial.interval["ja"][0] < known["ja"] < trial.interval["ja"][1]
        )
    assert results.objective.minimize == {"ja": 1.0}
    assert results.best == "rate-0.0003_replay-0.0"


def test_noise_is_of_the_same_documents(results: StudyResults) -> None:
    """Documents are off by up to 0.05, the trials by less: on the same documents 0.01 is still told apart."""
    near = {trial.name for trial in results.trials if trial.within_noise}
    assert near == {results.best}
    second = results.trial("rate-0.0001_replay-0.0")
    distance, interval = second.to_best
    assert distance == pytest.approx(toy_study.known(1e-4, 0.0)["ja"] - toy_study.known(3e-4, 0.0)["ja"])
    assert interval is not None and interval[0] == pytest.approx(distance) == pytest.approx(interval[1])


def test_equal_trials_are_within_noise(tmp_path: Path) -> None:
    study = measured(
        tmp_path, grid={"train.rate": [1e-4, 1e-3], "train.replay": [0.5, 0.6]}
    )  # as far from the optimum on either side
    found = read_results(study)
    assert [trial.within_noise for trial in found.trials] == [True, False, True, False]


def test_bounds_and_weights(tmp_path: Path) -> None:
    study = measured(tmp_path, objective={"minimize": {"ja": 1, "en": 0.5}, "bounds": {"en": 0.05}})
    found = read_results(study)
    assert [trial.allowed for trial in found.trials] == [False, False, True] * 3  # en loses 0.2, 0.1, 0
    assert found.best == "rate-0.0003_replay-1.0"
    assert found.trial(found.best).score == pytest.approx(toy_study.known(3e-4, 1.0)["ja"] + 0.5 * 2.0)
    none = read_results(measured(tmp_path, objective={"minimize": {"ja": 1}, "bounds": {"en": -1}}))
    assert none.best is None and "No trial keeps the bounds" in study_page(none).warnings[0]


def test_pareto_front_by_brute_force(results: StudyResults) -> None:
    places = {trial.name: (trial.difference["en"], -results.gain(trial)) for trial in results.trials}
    front = {
        name for name, place in places.items()
        if not any(other != place and other[0] <= place[0] and other[1] <= place[1] for other in places.values())
    }  # fmt: skip
    assert set(results.front) == front == {f"rate-0.0003_replay-{replay}" for replay in REPLAY}


def test_page_and_csv(results: StudyResults, tmp_path: Path) -> None:
    page, table = write_page(results, tmp_path)
    text = page.read_text()
    assert all(trial.name in text for trial in results.trials)
    assert "What the best have in common" in text and text.count("<svg") == 2
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["trial"] for row in rows] == [trial.name for trial in results.trials]
    assert float(rows[0]["bits_per_byte/ja"]) == results.trials[0].bits_per_byte["ja"]
    assert [row["on_front"] for row in rows].count("True") == 3
    assert csv_table(results).csv() == table.read_text()


def test_costs(tmp_path: Path) -> None:
    study = measured(tmp_path, resources={"gpus": 2, "trial": {"gpus": 2}}, price={"per_gpu_hour": 2.5})
    (trial, *_) = study.trials.values()
    graph = trial.experiment.graph(lambda line: None)
    graph.run(graph.select(None, "train"), trial.experiment.config)
    first = read_results(study).trials[0]
    assert first.gpu_hours == pytest.approx(first.seconds * 2 / 3600)
    assert first.cost == pytest.approx(first.gpu_hours * 2.5)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    study = measured(tmp_path)
    with pytest.raises(DataError, match="a language that was not measured"):
        read_results(measured(tmp_path, objective={"minimize": {"th": 1}}))
    last = list(study.trials.values())[-1]
    toy_study.write_evaluation(last.run_dir / "evaluate", toy_study.known(1e-3, 1.0), text="other")
    with pytest.raises(DataError, match="measured on different text"):
        read_results(study)
    for trial in study.trials.values():
        (trial.run_dir / "evaluate" / "results.json").unlink()
    with pytest.raises(DataError, match="no trial of the study"):
        read_results(study)


def test_missing_trials_are_named(tmp_path: Path) -> None:
    study = measured(tmp_path)
    name, trial = next(iter(study.trials.items()))
    (trial.run_dir / "evaluate" / "results.json").unlink()
    found = read_results(study, {name: "exit status 1 in train"})
    assert found.missing == {name: "exit status 1 in train"} and len(found.trials) == 8
    assert study_page(found).warnings == [f"{name} is missing: exit status 1 in train"]


def test_prediction_of_a_study(tmp_path: Path) -> None:
    """English loses 0.2 (1 - replay): a bound of 0.05 is kept from a share of 0.75 on. Of two rates the better one counts."""
    replay = [0.1, 0.2, 0.4, 0.6, 0.8, 0.9]
    bounds = {"minimize": {"ja": 1}, "bounds": {"en": 0.05}}
    study = measured(tmp_path, grid={"train.rate": [1e-4, 3e-4], "train.replay": replay}, objective=bounds)
    for trial in study.trials.values():
        share = trial.values["train.replay"]
        sources = [{"language": "en", "share": share}, {"language": "ja", "share": 1 - share}]
        (trial.run_dir / "tokens").mkdir()
        text = json.dumps({"total_tokens": 1000, "sources": sources})
        (trial.run_dir / "tokens" / "mixture.json").write_text(text)
    results = read_results(study)
    found = predict(study, results)
    assert found.critical is not None and found.critical[0] == pytest.approx(0.75, abs=0.005)
    assert found.fits["en"].error < 1e-3
    assert found.fits["ja"](share=0.5)[0] == pytest.approx(toy_study.known(3e-4, 0.5)["ja"], abs=1e-3)
    assert predict(study, results, bound=0.1).critical[0] == pytest.approx(0.5, abs=0.005)  # type: ignore[index]
    assert "too few" in found.refused["best pieces"]
    page = write_page(results, tmp_path / "page", found)[0].read_text()
    assert "from a replay share of 0.75" in page and "CMR" in page
    less = measured(tmp_path / "few")
    few = predict(less, read_results(less))
    assert few.critical is None and set(few.refused) >= {"bits per byte of en", "bits per byte of ja"}
