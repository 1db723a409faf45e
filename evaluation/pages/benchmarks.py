"""What the report says about benchmarks: ours beside the rows of the published tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.evaluation.benchmarks.suites import suites
from tsugiki.evaluation.benchmarks.task import own_tasks
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.experiment.pages.tables import Cell, Column, Number, Styled, Table, text_columns


@dataclass(frozen=True)
class Suite:
    """One table of benchmarks.

    Attributes:
        title: name of the suite.
        table: models, of this run and published, below each other.
        shots: examples before a question, and how many questions were asked.
        chat: models that were asked in their chat template.
        source: where the published rows are from.
        differs: how columns differ from the published ones: the sentence, and which they are.
    """

    title: str
    table: Table
    shots: str
    chat: str
    source: str
    differs: list[tuple[str, str]]


def benchmarks(artefacts: Artefacts, published: Sequence[str]) -> list[Suite]:
    """One table per suite, one for tasks named on their own; none when no benchmark was run."""
    measured: dict[str, dict[str, Any]] = (artefacts.results or {}).get("benchmarks", {})
    names = list(dict.fromkeys(entry["suite"] for entry in measured.get("base", {}).values()))
    return [_suite(name, measured, published) for name in names]


def _suite(
    name: str | None, measured: Mapping[str, Mapping[str, Mapping[str, Any]]], published: Sequence[str]
) -> Suite:
    entries = {key: entry for key, entry in measured["base"].items() if entry["suite"] == name}
    described = {} if name is None else suites().get(name, {})
    unit = described.get("unit", 1)
    form = ".4f" if unit == 1 else ".1f"
    rows: list[list[Cell]] = []
    for model in ("base", "result"):
        found = [measured[model][key] for key in entries]
        rows.append([f"this run: {model}", *(_number(entry, unit, form) for entry in found)])
    titles = [column["title"] for column in described.get("columns", [])]
    for row, values in described.get("published", {}).items():
        if published and row not in published:
            continue
        by_title = dict(zip(titles, values, strict=True))
        cells = [by_title.get(entry["title"]) for entry in entries.values()]
        rows.append([Styled(row), *(None if cell is None else Number(cell, form) for cell in cells)])
    columns = [
        Column(entry["title"], hint=f"{entry['task']}, {entry['metric']}, {entry['questions']:,} questions")
        for entry in entries.values()
    ]
    shots = [f"{entry['title']} {entry['fewshot']} ({entry['questions']:,})" for entry in entries.values()]
    asked = [
        model for model in ("base", "result") if any(measured[model][key].get("chat") for key in entries)
    ]
    return Suite(
        title=name or "Single tasks",
        table=Table(f"Benchmarks {name or ''}", [*text_columns("model"), *columns], rows),
        shots=", ".join(shots),
        chat=", ".join(asked),
        source=described.get("source", ""),
        differs=_differences(described.get("columns", []), {entry["title"] for entry in entries.values()}),
    )


def _differences(columns: Sequence[Mapping[str, Any]], shown: Collection[str]) -> list[tuple[str, str]]:
    """Sentences of suites and tasks, each with the titles of its columns."""
    tasks = own_tasks()
    found: dict[str, list[str]] = {}
    for column in columns:
        task = tasks.get(column["task"])
        for sentence in (column.get("differs"), task.differs if task else None):
            if sentence and column["title"] in shown:
                found.setdefault(" ".join(sentence.split()), []).append(column["title"])
    return [(sentence, ", ".join(titles)) for sentence, titles in found.items()]


def _number(entry: Mapping[str, Any], unit: int, form: str) -> Number:
    bounds = entry["interval"]
    return Number(entry["value"] * unit, form, None if bounds is None else [bound * unit for bound in bounds])
