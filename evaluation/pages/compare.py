"""The page of a comparison of runs, and the tables that its Markdown shares with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.pages.charts import Chart, Line, numbers, thin
from tsugiki.experiment.pages.formats import clipped, short
from tsugiki.experiment.pages.languages import language_name
from tsugiki.experiment.pages.page import Missing, Page, Section
from tsugiki.experiment.pages.tables import (
    Bar,
    Bars,
    Cell,
    Column,
    Language,
    Number,
    Styled,
    Table,
    Unknown,
    bars_column,
    text_columns,
)

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
_AXES = {
    "bytes": "bytes of text trained on",
    "tokens": "tokens trained on",
    "flops": "FLOPs of training",
}
_COLOURS = 8
_SHOWN = 4
"""Languages whose curves are shown at once."""
_NOT_EVALUATED = Missing("None of the runs has been evaluated.")
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Coloured:
    """A table with a bar for each run, the runs' colours, and what the template says besides."""

    legend: Sequence[tuple[str, str]]
    table: Table
    besides: str


@dataclass(frozen=True)
class Curves:
    """Charts by language; those beyond the first few are behind a line.

    Attributes:
        legend: colours of the runs.
        shown: charts of a language, one for each measure of cost that is known.
        rest: charts of the other languages.
        numbers: all of them as a table.
    """

    legend: Sequence[tuple[str, str]]
    shown: Sequence[Sequence[Chart]]
    rest: Sequence[Sequence[Chart]]
    numbers: Table


def comparison_page(values: Values) -> Page:
    """The whole page."""
    names = list(values["runs"])
    colours = {name: str(position % _COLOURS + 1) for position, name in enumerate(names)}
    legend = list(colours.items())
    scored = any(values["result"][language] for language in values["languages"])
    measured = any(values["tokens_per_byte"].values())
    quality = Coloured(legend, quality_table(values, colours), f"{values['confidence']:.0%}")
    vocabulary = Coloured(legend, vocabulary_table(values, colours), _sizes(values))
    return Page(
        " against ".join(names),
        f"Bits per byte on the same held-out text; differences are to {values['reference']}",
        [
            Section("quality", "Bits per byte", quality if scored else _NOT_EVALUATED),
            Section("benchmarks", "Benchmarks", benchmarks_table(values) if values["benchmarks"] else None),
            Section(
                "compute_matched",
                "At equal cost",
                _compute_matched(values) if values["compute_matched"] else None,
            ),
            Section("curves", "Along the way", _curves(values, colours)),
            Section("vocabulary", "Vocabulary", vocabulary if measured else _NOT_EVALUATED),
            Section("runs", "Runs", runs_table(values)),
            Section("settings", "What differs", _settings(values) if values["settings"] else None),
        ],
        warnings=values["warnings"],
    )


def quality_table(values: Values, colours: Mapping[str, str] | None = None) -> Table:
    """Bits per byte by language and run, and the differences to the first."""
    names = list(values["runs"])
    entries = [entry for found in values["result"].values() for entry in found.values()]
    most = max(
        (entry["interval"][1] if entry["interval"] else entry["bits_per_byte"] for entry in entries),
        default=0.0,
    )
    rows: list[list[Cell]] = []
    for language in values["languages"]:
        results = values["result"][language]
        base = next(iter(values["base"][language].values()), None)
        bars = [
            Bar(results[name]["bits_per_byte"], most, colour, results[name]["interval"])
            for name, colour in (colours or {}).items()
            if name in results
        ]
        rows.append(
            [
                Language(language),
                Bars(tuple(bars)),
                Number(base["bits_per_byte"], ".3f") if base else None,
                *(_score(results.get(name), ".3f") for name in names),
                *(_difference(values, language, name) for name in names[1:]),
            ]
        )
    columns = [
        *text_columns("language"),
        bars_column("bits per byte"),
        Column("base", on_page_only=True),
        *names,
        *(f"{name} − {names[0]}" for name in names[1:]),
    ]
    return Table("Bits per byte of each run on held-out text", columns, rows)


def _score(found: Values | None, form: str) -> Number | None:
    return None if found is None else Number(found["bits_per_byte"], form, found["interval"])


def _difference(values: Values, language: str, name: str) -> Cell:
    found = values["difference"].get(language, {}).get(name)
    if found is None:
        same = values["same_text"][language]
        return Unknown("not evaluated" if same else "not measured on the same text")
    interval = found["interval"]
    verdict = None
    if interval is not None and interval[0] * interval[1] > 0:
        verdict = "better" if found["bits_per_byte"] < 0 else "worse"
    return Number(found["bits_per_byte"], "+.3f", interval, verdict)


def benchmarks_table(values: Values) -> Table:
    """Benchmarks of each run."""
    names = list(values["runs"])
    rows: list[list[Cell]] = []
    for key, outcomes in values["benchmarks"].items():
        any_of = next(iter(outcomes.values()))
        cells = [
            Number(outcomes[name]["value"], ".4f", outcomes[name]["interval"]) if name in outcomes else None
            for name in names
        ]
        rows.append([key, any_of["metric"], any_of["fewshot"], *cells])
    columns = [
        *text_columns("benchmark"),
        Column("metric", numeric=False, on_page_only=True),
        Column("examples", hint="before a question", on_page_only=True),
        *names,
    ]
    return Table("Benchmarks of each run", columns, rows)


def _compute_matched(values: Values) -> Table:
    """What was reached for equal cost, the best of each measure in colour."""
    names = list(values["runs"])
    by_axis: dict[str, Any] = values["compute_matched"]
    columns = [
        f"{name}, {short(entry['at'])} {axis if axis != 'flops' else 'FLOPs'}"
        for axis, entry in by_axis.items()
        for name in names
    ]
    rows: list[list[Cell]] = []
    for language in dict.fromkeys(item for entry in by_axis.values() for item in entry["bits_per_byte"]):
        cells: list[Cell] = []
        for entry in by_axis.values():
            reached = entry["bits_per_byte"].get(language)
            best = min(reached.values()) if reached else None
            cells += [
                Number(reached[name], ".3f", verdict="better" if reached[name] == best else None)
                if reached
                else None
                for name in names
            ]
        rows.append([Language(language), *cells])
    return Table("Held-out bits per byte at equal cost", [*text_columns("language"), *columns], rows)


def reached_table(values: Values, axis: str) -> Table:
    """What was reached for equal cost by one measure."""
    names = list(values["runs"])
    reached = values["compute_matched"][axis]["bits_per_byte"]
    return Table(
        "Held-out bits per byte at equal cost",
        [*text_columns("language"), *names],
        [
            [Language(language), *(Number(found[name], ".3f") for name in names)]
            for language, found in reached.items()
        ],
    )


def _curves(values: Values, colours: Mapping[str, str]) -> Curves | Missing:
    languages = [
        language
        for language in values["languages"]
        if any(values["curves"][name].get(language) for name in colours)
    ]
    drawn = [_charts(values, colours, language) for language in languages]
    charts = [chart for of_language in drawn for chart in of_language]
    if not charts:
        return Missing("No validation during training in any run.")
    return Curves(
        list(colours.items()),
        drawn[:_SHOWN],
        drawn[_SHOWN:],
        numbers("Held-out bits per byte during training", charts),
    )


def _charts(values: Values, colours: Mapping[str, str], language: str) -> list[Chart]:
    """The charts of one language, one per measure of cost that is known."""
    found = []
    for axis, title in _AXES.items():
        lines = [
            Line(name, thin([(point[axis], point["bits_per_byte"]) for point in points]), colour)
            for name, colour in colours.items()
            if (
                points := [
                    point for point in values["curves"][name].get(language, []) if point[axis] is not None
                ]
            )
        ]
        if lines:
            ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3f}" for line in lines)
            found.append(
                Chart(
                    f"Bits per byte on held-out {language_name(language)} by {title}: {ends}",
                    lines,
                    x_title=title,
                    y_title="bits per byte",
                    caption=language_name(language),
                    width=330,
                    height=190,
                )
            )
    return found


def vocabulary_table(values: Values, colours: Mapping[str, str] | None = None) -> Table:
    """Tokens per byte of held-out text, and how many tokens each run needs relative to the first."""
    names = list(values["runs"])
    per_byte = values["tokens_per_byte"]
    largest = max((rate for rates in per_byte.values() for rate in rates.values()), default=0.0)
    rows: list[list[Cell]] = []
    for language, rates in per_byte.items():
        bars = [
            Bar(rates[name], largest, colour) for name, colour in (colours or {}).items() if name in rates
        ]
        first = rates.get(names[0])
        rows.append(
            [
                Language(language),
                Bars(tuple(bars)),
                *(Number(rates[name], ".4f") if name in rates else None for name in names),
                *(
                    Number(rates[name] / first, ".1%") if first and name in rates else None
                    for name in names[1:]
                ),
            ]
        )
    columns = [
        *text_columns("language"),
        bars_column("tokens per byte"),
        *names,
        *(Column(f"{name} / {names[0]}", hint="tokens needed", on_page_only=True) for name in names[1:]),
    ]
    return Table("Tokens per byte of held-out text", columns, rows)


def _sizes(values: Values) -> str:
    return "; ".join(
        f"{name} has {facts['vocabulary_size']:,} pieces"
        + (f", {facts['new_pieces']:,} of them new" if facts["new_pieces"] else "")
        for name, facts in values["runs"].items()
        if facts["vocabulary_size"]
    )


def runs_table(values: Values) -> Table:
    """Size and cost of each run."""
    keys = list(next(iter(values["runs"].values())))
    rows: list[list[Cell]] = [
        [name, *(short(facts[key]) if isinstance(facts[key], float) else facts[key] for key in keys)]
        for name, facts in values["runs"].items()
    ]
    columns = [*text_columns("run"), *(key.replace("_", " ") for key in keys)]
    return Table("What was trained", columns, rows)


def _settings(values: Values) -> Table:
    """Settings that differ between the runs."""
    names = list(values["runs"])
    rows: list[list[Cell]] = []
    for key, found in values["settings"].items():
        written = {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}
        cells = [Styled(clipped(written[name], 89)) if name in written else None for name in names]
        rows.append([Styled(key, "code"), *cells])
    return Table("Settings that differ", text_columns("setting", *names), rows)
