"""The efficiency report as tables, charts and sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsugiki.experiment.pages.charts import Chart, Line, numbers
from tsugiki.experiment.pages.languages import language_name
from tsugiki.experiment.pages.page import Section
from tsugiki.experiment.pages.tables import (
    Bar,
    Bars,
    Cell,
    Column,
    Language,
    Number,
    Table,
    Verdict,
    bars_column,
    text_columns,
)
from tsugiki.tokenizer.gates.gate import Gate
from tsugiki.tokenizer.learning.cost import ModelShape

TEMPLATE = Path(__file__).with_name("tokenizer.html.jinja")
Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Tokenizer -> language -> measure -> value."""
_COLOURS = ("b", "r", "2", "3", "4", "5", "6", "7", "8")
_CURVE_POINTS = 120
_SHOWN_QUANTILE = 0.98

COLUMNS: dict[str, tuple[str, str, str]] = {
    "tokens": ("tokens", ",.0f", "tokens, special tokens left out"),
    "relative_to_reference": (
        "relative",
        ".3f",
        "tokens divided by those of the first tokenizer on the same text",
    ),
    "tokens_per_character": ("tokens / char", ".3f", "tokens per Unicode character"),
    "characters_per_token": ("chars / token", ".2f", "Unicode characters per token"),
    "bytes_per_token": ("bytes / token", ".2f", "UTF-8 bytes per token"),
    "fertility": ("fertility", ".2f", "tokens per word"),
    "continued_words": ("continued", ".1%", "words that are cut into two or more tokens"),
    "single_token_retention": ("single token", ".1%", "words that lie within one token"),
    "byte_fallback_rate": ("bytes", ".2%", "tokens that are a part of a character only"),
    "parity": ("parity", ".2f", "tokens divided by those of the aligned English text, same tokenizer"),
    "context_characters": ("context", ",.0f", "characters of this language that fill the model's context"),
    "relative_cost": (
        "FLOPs",
        ".3f",
        "training and prefill FLOPs for the same text, relative to the first tokenizer",
    ),
}


def metrics_table(metrics: Metrics) -> Table:
    """The main table: one row per language and tokenizer."""
    measured = {key for row in metrics.values() for found in row.values() for key in found}
    present = {key: column for key, column in COLUMNS.items() if key in measured}
    rows: list[list[Cell]] = []
    for language in _languages(metrics):
        for name, row in metrics.items():
            found = row.get(language, {})
            cells = [
                Number(found[key], form) if key in found else None for key, (_, form, _) in present.items()
            ]
            rows.append([language, name, *cells])
    columns = [Column(title, hint=meaning) for title, _, meaning in present.values()]
    return Table("All measures", [*text_columns("language", "tokenizer"), *columns], rows)


def _languages(metrics: Metrics) -> list[str]:
    return list(dict.fromkeys(language for row in metrics.values() for language in row))


def as_csv(metrics: Metrics) -> str:
    """Every number in full: one row per tokenizer and language."""
    keys = list(dict.fromkeys(key for row in metrics.values() for item in row.values() for key in item))
    rows = [
        [name, language, *(found.get(key) for key in keys)]
        for name, row in metrics.items()
        for language, found in row.items()
    ]
    return Table("", ["tokenizer", "language", *keys], rows).csv()


@dataclass(frozen=True)
class Compared:
    """One measure of all tokenizers, as bars and numbers."""

    legend: Sequence[tuple[str, str]]
    table: Table
    caption: str


def compared(metrics: Metrics, key: str, caption: str) -> Compared:
    """A measure by language: one bar and one number for each tokenizer."""
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(metrics)}
    values = [found[key] for row in metrics.values() for found in row.values() if key in found]
    rows: list[list[Cell]] = []
    for language in _languages(metrics):
        measured = {name: row[language][key] for name, row in metrics.items() if key in row.get(language, {})}
        bars = Bars(tuple(Bar(value, max(values), colours[name]) for name, value in measured.items()))
        cells = [Number(measured[name], ".2f") if name in measured else None for name in metrics]
        rows.append([Language(language), bars, *cells])
    columns = [*text_columns("language"), bars_column(""), *metrics]
    return Compared(list(colours.items()), Table(caption, columns, rows), caption)


@dataclass(frozen=True)
class Charts:
    """Charts, what they show, and their numbers."""

    legend: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    caption: str
    numbers: Table


def line_lengths(tokens_per_line: Mapping[str, Mapping[str, NDArray[np.int32]]]) -> Charts:
    """Share of lines that need at most so many tokens; a chart per language.

    Args:
        tokens_per_line: language -> tokenizer -> tokens of each line.
    """
    charts = []
    for language, series in tokens_per_line.items():
        lines = [
            Line(name, _distribution(tokens), _COLOURS[at % len(_COLOURS)])
            for at, (name, tokens) in enumerate(series.items())
        ]
        medians = ", ".join(f"{name} {np.median(tokens):.0f}" for name, tokens in series.items())
        name = language_name(language)
        charts.append(
            Chart(
                f"Share of lines in {name} by the tokens they need; median: {medians}",
                lines,
                x_title="tokens in a line",
                y_title="share of lines",
                caption=name,
                detail=f"median: {medians}",
                width=330,
                height=190,
                y_range=(0.0, 1.0),
                x_most=max(float(np.quantile(tokens, _SHOWN_QUANTILE)) for tokens in series.values()),
            )
        )
    names = dict.fromkeys(name for series in tokens_per_line.values() for name in series)
    caption = "Share of lines that need at most so many tokens (98 % of lines shown); further left is better."
    return Charts(
        [(name, _COLOURS[at % len(_COLOURS)]) for at, name in enumerate(names)],
        charts,
        caption,
        numbers(caption, charts),
    )


def _distribution(tokens: NDArray[np.int32]) -> list[tuple[float, float]]:
    """(tokens, share of lines with at most so many) at evenly spaced ranks."""
    ordered = np.sort(tokens)
    ranks = np.unique(np.linspace(0, len(ordered) - 1, _CURVE_POINTS).round().astype(int))
    return [(0.0, 0.0), *((float(ordered[rank]), float((rank + 1) / len(ordered))) for rank in ranks)]


def size_curve(sizes: Sequence[int], ratios: Mapping[str, Sequence[float]], chosen: int | None) -> Charts:
    """Tokens relative to the base against the number of added pieces.

    Args:
        sizes: added pieces.
        ratios: language -> ratio at each size.
        chosen: size to mark.
    """
    ends = ", ".join(f"{language_name(language)} {values[-1]:.2f}" for language, values in ratios.items())
    caption = "Tokens of held-out text relative to the base, by number of added pieces (in merge order)."
    chart = Chart(
        f"Tokens relative to the base by number of added pieces; at the end: {ends}",
        [
            Line(language, list(zip(map(float, sizes), values, strict=True)), str(at % 8 + 1))
            for at, (language, values) in enumerate(ratios.items())
        ],
        x_title="added pieces",
        y_title="tokens relative to the base",
        width=960,
        height=320,
        y_range=(0.0, 1.0),
        mark=None if chosen is None or chosen > sizes[-1] else float(chosen),
        names_at_ends=True,
        form=".2f",
    )
    return Charts([], [chart], caption, numbers(caption, [chart]))


@dataclass(frozen=True)
class Added:
    """How the pieces that a tokenizer adds are used.

    Attributes:
        cards: (number, what it counts).
        lists: (title, pieces).
        ranks: occurrences by rank; None when no piece occurs.
    """

    cards: Sequence[tuple[str, str]]
    lists: Sequence[tuple[str, Sequence[str]]]
    ranks: Charts | None


def added_pieces(name: str, found: Mapping[str, Any]) -> Added:
    """What ``added_usage`` found, for the page."""
    lists = {
        "Most frequent": found["most_frequent"],
        "Longest": found["longest"],
        "Not in these texts": found["unused_examples"],
    }
    return Added(
        [
            (f"{found['added']:,}", "pieces added"),
            (f"{found['reserved']:,}", "reserved rows"),
            (f"{found['unused']:,}", "not in these texts"),
            (f"{found['rare']:,}", f"fewer than {found['rare_below']} times"),
        ],
        [(title, pieces) for title, pieces in lists.items() if pieces],
        _ranks(name, np.array(found["counts"])),
    )


def _ranks(name: str, usage: NDArray[np.int64]) -> Charts | None:
    """How often added pieces occur, by rank of frequency, on logarithmic axes."""
    used = np.sort(usage[usage > 0])[::-1]
    if not len(used):
        return None
    ranks = np.unique(np.geomspace(1, len(used), _CURVE_POINTS).round().astype(int))
    chart = Chart(
        f"Occurrences of the pieces that {name} adds by rank: from {used[0]:,} to {used[-1]:,}",
        [Line(name, [(float(rank), float(used[rank - 1])) for rank in ranks], "r")],
        x_title=f"rank among {len(usage):,} added pieces ({len(usage) - len(used):,} do not occur)",
        y_title="occurrences",
        width=960,
        height=260,
        logarithmic=True,
        form=",.0f",
    )
    caption = f"Occurrences of the pieces that {name} adds, by rank."
    return Charts([], [chart], caption, numbers(caption, [chart]))


@dataclass(frozen=True)
class Gates:
    """Checks of the vocabulary: outcomes, and (gate, examples of failures)."""

    table: Table
    examples: Sequence[tuple[str, Sequence[str]]]


def gates_section(gates: Sequence[Gate]) -> Section:
    """The gates as a table; a waived failure is red."""
    rows: list[list[Cell]] = [
        [
            item.name,
            Verdict(item.passed, "passed" if item.passed else "FAILED, waived"),
            item.checked,
            item.failures,
            item.note,
        ]
        for item in gates
    ]
    columns = [*text_columns("gate", "result"), "checked", "failed", *text_columns("note")]
    failed = [at for at, item in enumerate(gates) if not item.passed]
    content = Gates(
        Table("Checks of the vocabulary", columns, rows, marked=failed),
        [(item.name, item.examples) for item in gates if item.examples],
    )
    return Section("gates", "Gates", content)


@dataclass(frozen=True)
class Measures:
    """All measures.

    Attributes:
        table: a row for each language and tokenizer.
        meanings: (heading, what it means).
        reference: the tokenizer that others are compared with.
        segmenters: what words were found by.
        shape: of the model whose cost is predicted.
    """

    table: Table
    meanings: Sequence[tuple[str, str]]
    reference: str
    segmenters: str
    shape: ModelShape


def measures_sections(
    metrics: Metrics,
    tokens_per_line: Mapping[str, Mapping[str, NDArray[np.int32]]],
    segmenters: Mapping[str, str],
    shape: ModelShape,
    usage: Mapping[str, Mapping[str, Any] | None],
) -> list[Section]:
    """What every efficiency report shows."""
    measures = Measures(
        metrics_table(metrics),
        [(title, meaning) for title, _, meaning in COLUMNS.values()],
        next(iter(metrics)),
        "; ".join(f"{language}: {name}" for language, name in segmenters.items()),
        shape,
    )
    fertility = compared(
        metrics, "fertility", "Fertility: tokens per word; 1 would be a token for every word."
    )
    return [
        Section(
            "compression",
            "Compression",
            compared(metrics, "tokens_per_character", "Tokens per character; lower is better."),
        ),
        Section("measures", "All measures", measures),
        Section("words", "Words and lines", (fertility, line_lengths(tokens_per_line))),
        *(
            Section("added", f"Added pieces of {name}", added_pieces(name, found), anchor=f"added-{at}")
            for at, (name, found) in enumerate(usage.items())
            if found is not None
        ),
    ]
