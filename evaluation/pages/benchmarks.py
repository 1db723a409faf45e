"""Section of the report about benchmarks: ours beside the rows of the published tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.evaluation.benchmarks.suites import suites
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.experiment.pages.html import Column, Markup, Section, join, note, number, table, tag


def benchmarks_section(artefacts: Artefacts, published: Sequence[str]) -> Section | None:
    """One table per suite, one for tasks named on their own; None when no benchmark was run."""
    measured: dict[str, dict[str, Any]] = (artefacts.results or {}).get("benchmarks", {})
    if not measured.get("base"):
        return None
    parts: list[Markup] = [
        tag(
            "p",
            "Run through lm-evaluation-harness with the number of examples of the published table; 95% "
            "intervals. Prompts of our own tasks are not those of the publishers: "
            "compare base with result first, and either with a published row with care.",
        )
    ]
    names = list(dict.fromkeys(entry["suite"] for entry in measured["base"].values()))
    for suite in names:
        entries = {key: entry for key, entry in measured["base"].items() if entry["suite"] == suite}
        parts.append(tag("h3", "Single tasks" if suite is None else suite))
        parts.append(_table(suite, entries, measured, published))
    return Section("benchmarks", "Benchmarks", join(parts))


def _table(
    suite: str | None,
    entries: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    published: Sequence[str],
) -> Markup:
    described = {} if suite is None else suites().get(suite, {})
    unit = described.get("unit", 1)
    columns = [
        Column(entry["title"], hint=f"{entry['task']}, {entry['metric']}, {entry['questions']:,} questions")
        for entry in entries.values()
    ]
    rows: list[list[object]] = []
    for name in ("base", "result"):
        cells = [_cell(measured[name][key], unit) for key in entries]
        rows.append([join(["this run: ", name]), *cells])
    titles = [column["title"] for column in described.get("columns", [])]
    for row, values in described.get("published", {}).items():
        if published and row not in published:
            continue
        by_title = dict(zip(titles, values, strict=True))
        rows.append(
            [
                tag("span", row, class_="small"),
                *(_plain(by_title.get(entry["title"]), unit) for entry in entries.values()),
            ]
        )
    shots = [f"{entry['title']} {entry['fewshot']} ({entry['questions']:,})" for entry in entries.values()]
    asked = [name for name in ("base", "result") if any(measured[name][key].get("chat") for key in entries)]
    source = f" Asked in their chat template: {', '.join(asked)}." if asked else ""
    source += f" Other rows: {described['source']}." if described else ""
    return join(
        [
            table(f"Benchmarks {suite or ''}", [Column("model", numeric=False), *columns], rows),
            note(f"Examples before a question (questions asked): {', '.join(shots)}.{source}"),
        ]
    )


def _plain(value: float | None, unit: int) -> object:
    return None if value is None else number(value, ".4f" if unit == 1 else ".1f")


def _cell(entry: Mapping[str, Any], unit: int) -> Markup:
    form = ".4f" if unit == 1 else ".1f"
    shown = number(entry["value"] * unit, form)
    if entry["interval"] is None:
        return shown
    low, high = (number(bound * unit, form) for bound in entry["interval"])
    return join([shown, " ", tag("span", Markup(f"[{low}, {high}]"), class_="small")])
