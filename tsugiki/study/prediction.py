"""What a study predicts: laws fitted to its trials, and the replay share that a bound on English asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsugiki.evaluation.pages.artefacts import Artefacts, run_directories
from tsugiki.experiment.errors import ConfigError, DataError, TsugikiError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.pages.tables import Cell, Number, Table, text_columns
from tsugiki.study.laws import Fit, Law, best_value, cmr, critical_share, dcpt, fit, parabola
from tsugiki.study.results import ENGLISH, StudyResults
from tsugiki.study.trials import Study

_LEARNING_RATE = "train.optimizer.learning_rate"


@dataclass(frozen=True)
class Prediction:
    """What a study predicts.

    Attributes:
        fits: language -> law of its bits per byte in the share of English, and in tokens and parameters if they vary.
        critical: smallest share of English that keeps the bound, with its interval.
        best: variable -> where bits per byte are lowest, with its interval.
        refused: what was not predicted, and why.
    """

    fits: Mapping[str, Fit]
    critical: tuple[float, tuple[float, float]] | None
    best: Mapping[str, tuple[float, tuple[float, float]]]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where a trial lies: share of English, tokens, parameters, pieces added, learning rate; None is unknown."""

    trial: str
    share: float | None
    tokens: float | None
    parameters: float | None
    pieces: float | None
    learning_rate: float | None


def predict(
    study: Study, results: StudyResults, *, bound: float | None = None, at: Mapping[str, float] | None = None
) -> Prediction:
    """Fit the laws that the trials support.

    Args:
        study: a checked study.
        results: what its trials measured.
        bound: bits per byte that English may lose against the base; None takes the objective's.
        at: ``tokens`` and ``parameters`` of the run to predict for; else the largest that were measured.
    """
    places = [_place(study, trial.name) for trial in results.trials]
    refused: dict[str, str] = {}
    fits: dict[str, Fit] = {}
    for language in results.languages:
        try:
            fits[language] = _fit_of(language, places, results)
        except TsugikiError as error:
            refused[f"bits per byte of {language}"] = _line(error)
    bound = results.objective.bounds.get(ENGLISH) if bound is None else bound
    critical = None
    if bound is not None and ENGLISH in fits:
        law = fits[ENGLISH]
        fixed = {
            name: (at or {}).get(name, law.ranges[name][1]) for name in law.law.variables if name != "share"
        }
        try:
            critical = critical_share(law, results.base[ENGLISH] + bound, **fixed)
        except ConfigError as error:
            refused["replay share"] = _line(error)
    best = {}
    for name in ("pieces", "learning_rate"):
        try:
            best[name] = best_value(_parabola_of(name, places, results))
        except DataError as error:
            refused[f"best {name.replace('_', ' ')}"] = _line(error)
    return Prediction(fits, critical, best, refused)


def _place(study: Study, name: str) -> Place:
    artefacts = Artefacts.load(run_directories(study.trials[name].run_dir))
    mixture = artefacts.mixture or {}
    shares = [source["share"] for source in mixture.get("sources", []) if source["language"] == ENGLISH]
    rate = study.trials[name].values.get(_LEARNING_RATE)
    return Place(
        name,
        float(sum(shares)) if "sources" in mixture else None,
        float(mixture["total_tokens"]) if "total_tokens" in mixture else None,
        None if artefacts.model is None else float(ModelSpec.model_validate(artefacts.model).parameters),
        None if artefacts.added_rows is None else float(artefacts.added_rows),
        None if rate is None else float(rate),
    )


def _fit_of(language: str, places: Sequence[Place], results: StudyResults) -> Fit:
    """The law of one language; of trials at the same place (other learning rates, say) the best one counts."""
    tokens, parameters = (
        len({getattr(place, name) for place in places}) >= 3 for name in ("tokens", "parameters")
    )
    law: Law = (
        dcpt(tokens=tokens, parameters=parameters, of_replay=language != ENGLISH)
        if tokens or parameters
        else cmr(of_replay=True)
    )
    chosen = _best_at(places, results, law.variables)
    points = [{name: getattr(place, name) for name in law.variables} for place in chosen]
    return fit(law, points, [results.trial(place.trial).bits_per_byte[language] for place in chosen])


def _parabola_of(name: str, places: Sequence[Place], results: StudyResults) -> Fit:
    """Score over one variable; at each value the best trial counts."""
    usable = [place for place in places if getattr(place, name)]  # the logarithm of 0 pieces is none
    chosen = _best_at(usable, results, (name,))
    return fit(
        parabola(name),
        [{name: getattr(place, name)} for place in chosen],
        [results.trial(place.trial).score for place in chosen],
    )


def _best_at(places: Sequence[Place], results: StudyResults, variables: Sequence[str]) -> list[Place]:
    chosen: dict[tuple[float, ...], Place] = {}
    for place in places:
        where = tuple(getattr(place, name) for name in variables)
        if None in where:
            raise DataError(
                "a trial lacks what a law needs", got=f"{place.trial}: {', '.join(variables)}",
                expected="tokens/mixture.json and train/model.json of every trial",
            )  # fmt: skip
        known = chosen.get(where)
        if known is None or results.trial(place.trial).score < results.trial(known.trial).score:
            chosen[where] = place
    return list(chosen.values())


def _line(error: TsugikiError) -> str:
    parts = [
        error.what,
        f"got {error.got}" if error.got else "",
        f"expected {error.expected}" if error.expected else "",
    ]
    return "; ".join(part for part in parts if part)


def fits_table(prediction: Prediction) -> Table:
    """The fitted laws and how far they may be trusted."""
    rows: list[list[Cell]] = []
    for language, found in prediction.fits.items():
        values = ", ".join(
            f"{name} {value:.4g}" for name, value in {**found.exponents, **found.coefficients}.items()
        )
        ranges = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in found.ranges.items())
        rows.append([language, found.law.name, values, ranges, Number(found.error, ".4f")])
    return Table(
        "Laws fitted to the trials",
        [
            *text_columns("language", "law", "parameters", "fitted for"),
            "bits per byte missed by points left out",
        ],
        rows,
    )


def findings(prediction: Prediction, *, refused: bool = True) -> list[str]:
    """What was predicted and, with ``refused``, what was not, in sentences."""
    found = []
    if prediction.critical is not None:
        share, (low, high) = prediction.critical
        found.append(
            f"English keeps its bound from a replay share of {share:.3f} on [{low:.3f}, {high:.3f}]."
        )
    for name, (value, (low, high)) in prediction.best.items():
        found.append(f"Best {name.replace('_', ' ')}: {value:.4g} [{low:.4g}, {high:.4g}].")
    if refused:
        found += [f"Not predicted, {what}: {why}." for what, why in prediction.refused.items()]
    return found
