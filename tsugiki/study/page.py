"""The page of a study, and its table as CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.files import atomic_file, write_text_atomically
from tsugiki.experiment.pages.charts import Chart, Line, numbers
from tsugiki.experiment.pages.formats import duration
from tsugiki.experiment.pages.languages import language_name
from tsugiki.experiment.pages.page import Missing, Page, Section, render
from tsugiki.experiment.pages.tables import Cell, Number, Styled, Table, Verdict, text_columns
from tsugiki.study.prediction import Prediction, findings, fits_table
from tsugiki.study.results import ENGLISH, StudyResults, TrialResult

TEMPLATE = Path(__file__).with_name("study.html.jinja")
FOLDER = "page"
PAGE_NAME = "index.html"
CSV_NAME = "trials.csv"
_BEST, _NEAR, _OTHER = "r", "1", "b"
_AXIS_NAME = 18


@dataclass(frozen=True)
class Drawn:
    """A chart with its colours and its numbers."""

    legend: Sequence[tuple[str, str]]
    chart: Chart
    numbers: Table


@dataclass(frozen=True)
class Predicted:
    """Laws and what follows from them."""

    table: Table
    findings: Sequence[str]


def write_page(results: StudyResults, folder: Path, prediction: Prediction | None = None) -> tuple[Path, ...]:
    """Write ``index.html`` and ``trials.csv`` into a folder, which is made; the files."""
    files = (folder / PAGE_NAME, folder / CSV_NAME)
    with atomic_file(files[0]) as file:
        file.write(render(study_page(results, prediction), TEMPLATE))
    write_text_atomically(files[1], csv_table(results).csv())
    return files


def study_page(results: StudyResults, prediction: Prediction | None = None) -> Page:
    """The whole page."""
    near = [trial.name for trial in results.trials if trial.within_noise]
    cards = [
        (f"{len(results.trials)}", "trials"),
        (f"{sum(trial.seconds for trial in results.trials) / 3600:,.2f}", "hours of training"),
    ]
    if results.best is not None:
        best = results.trial(results.best)
        cards.append((f"{best.score:.3f}", f"best: {results.best}"))
        cards.append((f"{len(near)}", "within noise of it, itself included"))
    costs = [trial.cost for trial in results.trials if trial.cost is not None]
    if costs:
        cards.append((f"{sum(costs):,.2f}", "cost of training"))
    warnings = [f"{name} is missing: {why}" for name, why in results.missing.items()]
    if results.best is None:
        warnings.append(f"No trial keeps the bounds: {_bounds(results)}.")
    return Page(
        results.config.name,
        f"{results.config.experiment}: {', '.join(results.config.keys)}",
        [
            Section("trials", "Trials", trials_table(results), f"best first: {_what(results)}"),
            Section("front", "Gain against English", _front(results)),
            Section("coordinates", "What the best have in common", _coordinates(results)),
            Section(
                "prediction",
                "Prediction",
                None if prediction is None else Predicted(fits_table(prediction), findings(prediction)),
            ),
            Section("missing", "Not measured", _missing(results) if results.missing else None),
        ],
        cards=cards,
        warnings=warnings,
    )


def _what(results: StudyResults) -> str:
    weights = results.objective.minimize
    parts = [
        language_name(name) if len(weights) == 1 else f"{weight:.3g} {name}"
        for name, weight in weights.items()
    ]
    return f"bits per byte of {' + '.join(parts)}" + (
        f", {_bounds(results)}" if results.objective.bounds else ""
    )


def _bounds(results: StudyResults) -> str:
    return ", ".join(
        f"{name} at most {bound:+.3g} against the base" for name, bound in results.objective.bounds.items()
    )


def _order(results: StudyResults) -> list[TrialResult]:
    return sorted(results.trials, key=lambda trial: (not trial.allowed, trial.score))


def trials_table(results: StudyResults) -> Table:
    """A row a trial, best first."""
    rows: list[list[Cell]] = []
    for trial in _order(results):
        distance, interval = trial.to_best
        bounds = Verdict(True, "kept") if trial.allowed else Verdict(False, "broken")
        row: list[Cell] = [
            Styled(trial.name, "code"),
            *(_cell(trial.values.get(key)) for key in results.config.keys),
        ]
        row.append(Number(trial.score, ".3f"))
        row.append(
            "best"
            if trial.name == results.best
            else Number(distance, "+.3f", interval, None if trial.within_noise else "worse")
        )
        row += [bounds] if results.objective.bounds else []
        for language in results.languages:
            row.append(Number(trial.bits_per_byte[language], ".3f", trial.interval[language]))
            row.append(Number(trial.difference[language], "+.3f"))
        row.append(duration(trial.seconds))
        row += [trial.cost] if any(item.cost is not None for item in results.trials) else []
        rows.append(row)
    columns: list[Any] = [*text_columns("trial"), *results.config.keys, "score", "to the best"]
    columns += text_columns("bounds") if results.objective.bounds else []
    for language in results.languages:
        columns += [language, f"{language} − base"]
    columns.append("training")
    columns += ["cost"] if any(item.cost is not None for item in results.trials) else []
    return Table("Trials, best first", columns, rows)


def csv_table(results: StudyResults) -> Table:
    """Every trial in the order of the study, numbers in full."""
    columns: list[Any] = ["trial", *results.config.keys]
    for language in results.languages:
        columns += [
            f"bits_per_byte/{language}",
            f"low/{language}",
            f"high/{language}",
            f"difference/{language}",
        ]
    columns += ["score", "allowed", "within_noise", "on_front", "train_seconds", "gpu_hours", "cost"]
    rows: list[list[Cell]] = []
    for trial in results.trials:
        row: list[Cell] = [trial.name, *(_cell(trial.values.get(key)) for key in results.config.keys)]
        for language in results.languages:
            low, high = trial.interval[language] or (None, None)
            row += [trial.bits_per_byte[language], low, high, trial.difference[language]]
        row += [trial.score, trial.allowed, trial.within_noise, trial.name in results.front]
        row += [trial.seconds, trial.gpu_hours, trial.cost]
        rows.append(row)
    return Table("Trials", columns, rows)


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, (str, int, float)):
        return value
    return json.dumps(value, ensure_ascii=False)


def _colour(results: StudyResults, trial: TrialResult) -> str:
    return _BEST if trial.name == results.best else _NEAR if trial.within_noise else _OTHER


_LEGEND = (("best", _BEST), ("within noise of it", _NEAR), ("others", _OTHER))


def _front(results: StudyResults) -> Drawn | Missing | None:
    """Target gain over English loss."""
    if ENGLISH not in results.languages:
        return Missing("English was not measured.")
    places = {trial.name: (trial.difference[ENGLISH], results.gain(trial)) for trial in results.trials}
    points = [Line(trial.name, [places[trial.name]], _colour(results, trial)) for trial in results.trials]
    front = Line("not beaten in both", [places[name] for name in results.front], "2")
    chart = Chart(
        f"Target gain over English loss of {len(points)} trials; not beaten in both: {', '.join(results.front)}",
        [front, *points],
        x_title="bits per byte that English lost",
        y_title="bits per byte gained",
        height=300,
    )
    shown = Chart("front", [front], x_title=chart.x_title, y_title=chart.y_title)
    return Drawn(
        [("not beaten in both", "2"), *_LEGEND], chart, numbers("Trials not beaten in both", [shown])
    )


def _coordinates(results: StudyResults) -> Drawn | None:
    """Parallel coordinates: a line a trial, from its values to its score."""
    keys = list(results.config.keys)
    shares = [axis_shares([trial.values.get(key) for trial in results.trials]) for key in keys]
    shares.append(axis_shares([trial.score for trial in results.trials]))
    lines = [
        Line(
            trial.name,
            [(float(at), share[number]) for at, share in enumerate(shares)],
            _colour(results, trial),
        )
        for number, trial in enumerate(results.trials)
    ]
    # The best last, so that it lies on top.
    lines.sort(key=lambda line: (_OTHER, _NEAR, _BEST).index(line.colour))
    names = [key.rpartition(".")[2][:_AXIS_NAME] for key in keys]
    chart = Chart(
        f"Values of {len(lines)} trials beside their score; lowest value 0, highest 1 on every axis",
        lines,
        x_title="",
        y_title="share of the range",
        height=260,
        x_names=[*names, "score"],
        y_range=(0.0, 1.0),
    )
    return Drawn(_LEGEND, chart, _ranges(results))


def axis_shares(values: Sequence[Any]) -> list[float]:
    """Where values lie on an axis from 0 to 1: by size, on a logarithm where they span a factor of ten, else by order.

    >>> axis_shares([1e-4, 1e-3, 1e-2]), axis_shares([0, 1, 4]), axis_shares(["x", "y", "x"])
    ([0.0, 0.5, 1.0], [0.0, 0.25, 1.0], [0.0, 1.0, 0.0])
    """
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        found = [float(value) for value in values]
        if min(found) > 0 and max(found) / min(found) >= 10:
            found = [math.log10(value) for value in found]
    else:
        names = list(dict.fromkeys(map(str, values)))
        found = [float(names.index(str(value))) for value in values]
    low, high = min(found), max(found)
    return [round((value - low) / (high - low), 6) if high > low else 0.5 for value in found]


def _ranges(results: StudyResults) -> Table:
    """The values of every axis, from its lower end to its upper one."""
    rows: list[list[Cell]] = []
    for key in results.config.keys:
        values = [trial.values.get(key) for trial in results.trials]
        places = dict(zip(axis_shares(values), values, strict=True))
        rows.append([Styled(key, "code"), ", ".join(str(_cell(places[at])) for at in sorted(places))])
    return Table("Values of each axis, from below", text_columns("key", "values"), rows)


def _missing(results: StudyResults) -> Table:
    return Table(
        "Trials that were not measured",
        text_columns("trial", "why"),
        [[name, why] for name, why in results.missing.items()],
    )
