"""What the trials of a study measured: bits per byte by language, cost, and which is best.

Trials are compared on the very same held-out documents, resampled together, so that what is "within noise" of the best
is what the choice of these documents may decide. Another seed of the training may decide more: give `seed` several
values to see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tsugiki.evaluation.pages.artefacts import Artefacts, run_directories
from tsugiki.evaluation.scoring.intervals import Interval, Resampler
from tsugiki.experiment.errors import DataError
from tsugiki.study.config import Objective, StudyConfig, Values
from tsugiki.study.trials import Study

if TYPE_CHECKING:
    import numpy as np

ENGLISH = "en"
_RESAMPLES = 1000
_CONFIDENCE = 0.95
_EQUAL = 1e-9


@dataclass(frozen=True)
class TrialResult:
    """What one trial measured.

    Attributes:
        name: of the trial.
        values: in which it differs from the others.
        bits_per_byte: by language, after training.
        interval: of it, by the bootstrap over documents; None with fewer than two documents.
        difference: by language, to the base; below 0 is better.
        seconds: of its own training.
        gpu_hours: of its own training; None without GPUs.
        cost: in the study's currency; None without a price.
        score: what is minimized.
        allowed: whether it keeps the objective's bounds.
        to_best: score less the best one's, with its interval.
    """

    name: str
    values: Values
    bits_per_byte: Mapping[str, float]
    interval: Mapping[str, Interval | None]
    difference: Mapping[str, float]
    seconds: float
    gpu_hours: float | None
    cost: float | None
    score: float
    allowed: bool
    to_best: tuple[float, Interval | None] = (0.0, None)

    @property
    def within_noise(self) -> bool:
        """Whether the documents cannot tell it from the best one."""
        distance, interval = self.to_best
        return self.allowed and (distance < _EQUAL or (interval is not None and interval[0] <= 0))


@dataclass(frozen=True)
class StudyResults:
    """What a study found.

    Attributes:
        config: the study's file.
        languages: measured in every trial.
        base: bits per byte of the base by language; of the first trial.
        trials: those that are complete, in order.
        missing: trial -> why it is not here.
        objective: what is minimized.
        best: name of the best trial that keeps the bounds; None when none does.
        front: names on the Pareto front of target gain and English loss, by falling loss.
    """

    config: StudyConfig
    languages: Sequence[str]
    base: Mapping[str, float]
    trials: Sequence[TrialResult]
    missing: Mapping[str, str]
    objective: Objective
    best: str | None
    front: Sequence[str] = field(default=())

    def trial(self, name: str) -> TrialResult:
        """A trial by name."""
        return next(trial for trial in self.trials if trial.name == name)

    def gain(self, trial: TrialResult) -> float:
        """Bits per byte gained in the languages of the objective, weighted."""
        weights = self.objective.minimize
        return -sum(weight * trial.difference[language] for language, weight in weights.items()) / sum(
            weights.values()
        )


def read_results(study: Study, states: Mapping[str, str] | None = None) -> StudyResults:
    """Read what the trials measured.

    Args:
        study: a checked study.
        states: trial -> why it is not complete, where that is known.

    Raises:
        DataError: no trial is complete; trials were measured on different text, or in different ways; the objective
            names a language that was not measured.
    """
    found = {
        name: artefacts
        for name, trial in study.trials.items()
        if (artefacts := Artefacts.load(run_directories(trial.run_dir))).results is not None
    }
    if not found:
        raise DataError(
            "no trial of the study has been evaluated",
            where=study.directory,
            fix="run the study: `tsugiki sweep`",
        )
    languages = _same_measure(found)
    objective = study.config.objective or Objective(minimize=_targets(languages))
    unknown = [language for language in [*objective.minimize, *objective.bounds] if language not in languages]
    if unknown:
        raise DataError(
            "the objective names a language that was not measured",
            where="objective", got=unknown[0], expected=f"one of {', '.join(languages)}",
        )  # fmt: skip
    trials = [_result(study, name, artefacts, languages, objective) for name, artefacts in found.items()]
    allowed = [trial for trial in trials if trial.allowed]
    best = min(allowed, key=lambda trial: trial.score).name if allowed else None
    if best is not None:
        trials = _against(best, trials, found, objective)
    missing = {
        name: (states or {}).get(name) or "not evaluated" for name in study.trials if name not in found
    }
    base = next(iter(found.values())).results
    assert base is not None
    values = {language: base["base"]["bits_per_byte"][language] for language in languages}
    results = StudyResults(study.config, languages, values, trials, missing, objective, best)
    return StudyResults(**{**results.__dict__, "front": pareto_front(results)})


def _targets(languages: Sequence[str]) -> dict[str, float]:
    targets = [language for language in languages if language != ENGLISH] or list(languages)
    return {language: 1 / len(targets) for language in targets}


def _same_measure(found: Mapping[str, Artefacts]) -> list[str]:
    """Languages that all were measured in, on the same text.

    Raises:
        DataError: texts or protocols differ.
    """
    first_name, first = next(iter(found.items()))
    assert first.results is not None
    for name, artefacts in found.items():
        assert artefacts.results is not None
        for what in ("text_sha256", "protocol"):
            if artefacts.results.get(what) != first.results.get(what):
                of = "different text" if what == "text_sha256" else "different windows or precision"
                raise DataError(
                    f"trials were measured on {of}, and cannot be compared",
                    where=artefacts.directories["evaluate"], got=f"not as {first_name} was",
                    expected="the same held-out documents in all trials",
                    fix=f"leave out what changes them, or make a study of its own for {name} and its like",
                )  # fmt: skip
    return list(first.results["bytes"])


def _result(
    study: Study, name: str, artefacts: Artefacts, languages: Sequence[str], objective: Objective
) -> TrialResult:
    results = artefacts.results
    assert results is not None
    after = {language: float(results["result"]["bits_per_byte"][language]) for language in languages}
    difference = {
        language: after[language] - results["base"]["bits_per_byte"][language] for language in languages
    }
    manifest = artefacts.manifests.get("train")
    seconds = manifest.seconds if manifest is not None else 0.0
    gpus = study.config.resources.trial.gpus
    hours = seconds * gpus / 3600 if gpus else None
    price = study.config.price.per_gpu_hour
    intervals = results["result"]["bits_per_byte_interval"]
    return TrialResult(
        name,
        study.trials[name].values,
        after,
        {language: tuple(intervals[language]) if intervals[language] else None for language in languages},
        difference,
        seconds,
        hours,
        None if hours is None or price is None else hours * price,
        sum(weight * after[language] for language, weight in objective.minimize.items()),
        all(difference[language] <= bound for language, bound in objective.bounds.items()),
    )


def _against(
    best: str, trials: Sequence[TrialResult], found: Mapping[str, Artefacts], objective: Objective
) -> list[TrialResult]:
    """The trials with their distance to the best one, on the same draws of documents."""
    draws = {
        language: Resampler(len(found[best].scores(language)), _RESAMPLES, _CONFIDENCE, 1234, language)
        for language in objective.minimize
    }

    def scores(name: str) -> Any:
        total: np.ndarray | float = 0.0
        for language, weight in objective.minimize.items():
            total = total + weight * draws[language].rates(found[name].scores(language))
        return total

    usable = all(draw.usable for draw in draws.values())
    least = next(trial.score for trial in trials if trial.name == best)
    reference = scores(best) if usable else None
    resampler = next(iter(draws.values()))
    return [
        TrialResult(
            **{
                **trial.__dict__,
                "to_best": (
                    trial.score - least,
                    resampler.interval(scores(trial.name) - reference) if usable else None,
                ),
            }
        )
        for trial in trials
    ]


def pareto_front(results: StudyResults) -> list[str]:
    """Trials that no other beats in both target gain and English loss, by rising loss; empty without English."""
    if ENGLISH not in results.languages:
        return []
    ordered = sorted(results.trials, key=lambda trial: (trial.difference[ENGLISH], -results.gain(trial)))
    front: list[str] = []
    most = float("-inf")
    for trial in ordered:
        if results.gain(trial) > most:
            front.append(trial.name)
            most = results.gain(trial)
    return front
