"""The page of a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.charts import Line, line_chart, short, thin
from evaluation.html import (
    MISSING,
    Column,
    Markup,
    Section,
    bar,
    details,
    join,
    legend,
    note,
    number,
    page,
    table,
    tag,
    text,
)
from evaluation.languages import labelled, language_name

_AXES = {
    "bytes": "bytes of text trained on",
    "tokens": "tokens trained on",
    "flops": "FLOPs of training",
}
_COLOURS = 8


def comparison_page(values: Mapping[str, Any]) -> str:
    """The whole page."""
    names = list(values["runs"])
    colours = {name: str(position % _COLOURS + 1) for position, name in enumerate(names)}
    warnings = join(note(warning, "missing") for warning in values["warnings"])
    return page(
        " against ".join(names),
        f"Bits per byte on the same held-out text; differences are to {values['reference']}",
        warnings,
        [
            Section("quality", "Bits per byte", _quality(values, colours)),
            *_benchmarks(values),
            Section("curves", "Along the way", _curves(values, colours)),
            Section("vocabulary", "Vocabulary", _vocabulary(values, colours)),
            Section("runs", "Runs", _runs(values)),
        ],
    )


def _key(colours: Mapping[str, str]) -> Markup:
    return legend((name, f"k{colour}") for name, colour in colours.items())


def _quality(values: Mapping[str, Any], colours: Mapping[str, str]) -> Markup:
    names = list(colours)
    entries = [entry for language in values["languages"] for entry in values["result"][language].values()]
    if not entries:
        return note("None of the runs has been evaluated.", "missing")
    largest = max(entry["interval"][1] if entry["interval"] else entry["bits_per_byte"] for entry in entries)
    rows = []
    for language in values["languages"]:
        results = values["result"][language]
        if not results:
            continue
        base = next(iter(values["base"][language].values()), None)
        rows.append(
            [
                labelled(language),
                join(
                    bar(
                        results[name]["bits_per_byte"],
                        largest,
                        f"k{colours[name]}",
                        results[name]["interval"],
                    )
                    for name in names
                    if name in results
                ),
                number(base["bits_per_byte"], ".3f") if base else None,
                *(
                    number(results[name]["bits_per_byte"], ".3f") if name in results else None
                    for name in names
                ),
                *(_difference(values, language, name) for name in names[1:]),
            ]
        )
    columns: list[Column | str] = [
        Column("language", numeric=False),
        Column("bits per byte", numeric=False),
        Column("base"),
        *(Column(name) for name in names),
        *(Column(f"{name} − {names[0]}") for name in names[1:]),
    ]
    return join(
        [
            _key(colours),
            table("Bits per byte of each run on held-out text", columns, rows),
            tag(
                "p",
                f"Lower is better. Intervals: {values['confidence']:.0%}, bootstrap over documents, the same "
                "documents for both runs. A difference is coloured when its interval excludes zero.",
                class_="small",
            ),
        ]
    )


def _difference(values: Mapping[str, Any], language: str, name: str) -> Markup:
    found = values["difference"].get(language, {}).get(name)
    if found is None:
        reason = "not measured on the same text" if not values["same_text"][language] else "not evaluated"
        return tag("span", MISSING, title=reason)
    interval = found["interval"]
    kind = None
    if interval is not None and interval[0] * interval[1] > 0:
        kind = "better" if found["bits_per_byte"] < 0 else "worse"
    shown = tag("span", number(found["bits_per_byte"], "+.3f"), class_=kind)
    if interval is None:
        return shown
    bounds = ", ".join(number(bound, "+.3f") for bound in interval)
    return join([shown, " ", tag("span", Markup(f"[{bounds}]"), class_="small")])


def _benchmarks(values: Mapping[str, Any]) -> list[Section]:
    if not values["benchmarks"]:
        return []
    names = list(values["runs"])
    rows = [
        [
            key,
            next(iter(outcomes.values()))["metric"],
            next(iter(outcomes.values()))["fewshot"],
            *(_outcome(outcomes[name]) if name in outcomes else None for name in names),
        ]
        for key, outcomes in values["benchmarks"].items()
    ]
    columns = [
        Column("benchmark", numeric=False),
        Column("metric", numeric=False),
        Column("examples", hint="before a question"),
        *(Column(name) for name in names),
    ]
    return [Section("benchmarks", "Benchmarks", table("Benchmarks of each run", columns, rows))]


def _outcome(outcome: Mapping[str, Any]) -> Markup:
    shown = number(outcome["value"], ".4f")
    if outcome["interval"] is None:
        return shown
    low, high = (number(bound, ".4f") for bound in outcome["interval"])
    return join([shown, " ", tag("span", Markup(f"[{low}, {high}]"), class_="small")])


def _curves(values: Mapping[str, Any], colours: Mapping[str, str]) -> Markup:
    languages = [
        language
        for language in values["languages"]
        if any(values["curves"][name].get(language) for name in colours)
    ]
    if not languages:
        return note("No validation during training in any run.", "missing")
    blocks: list[Markup] = [
        tag(
            "p",
            "The same curves over three measures of effort. Runs with different vocabularies see different "
            "amounts of text in the same number of tokens, and spend different work on a token.",
        ),
        _key(colours),
    ]
    for axis, title in _AXES.items():
        figures = []
        for language in languages:
            lines = [
                Line(
                    name,
                    thin(
                        [
                            (point[axis], point["bits_per_byte"])
                            for point in values["curves"][name].get(language, [])
                            if point[axis] is not None
                        ]
                    ),
                    colour,
                )
                for name, colour in colours.items()
            ]
            drawn = [line for line in lines if line.points]
            if not drawn:
                continue
            ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3f}" for line in drawn)
            chart = line_chart(
                f"Bits per byte on held-out {language_name(language)} by {title}: {ends}",
                drawn,
                x_title=title,
                width=330,
                height=190,
            )
            figures.append(tag("figure", join([tag("figcaption", language_name(language)), chart])))
        if figures:
            content = tag("div", join(figures), class_="multiples")
            opened = details(f"By {title}", content, opened=axis == "bytes")
            blocks.append(opened)
    return join(blocks)


def _vocabulary(values: Mapping[str, Any], colours: Mapping[str, str]) -> Markup:
    per_byte = values["tokens_per_byte"]
    largest = max((rate for rates in per_byte.values() for rate in rates.values()), default=0.0)
    if not largest:
        return note("None of the runs has been evaluated.", "missing")
    rows = [
        [
            labelled(language),
            join(bar(rates[name], largest, f"k{colours[name]}") for name in colours if name in rates),
            *(number(rates[name], ".4f") if name in rates else None for name in colours),
        ]
        for language, rates in per_byte.items()
        if rates
    ]
    return join(
        [
            _key(colours),
            table(
                "Tokens per byte of held-out text",
                [
                    Column("language", numeric=False),
                    Column("tokens per byte", numeric=False),
                    *(Column(name) for name in colours),
                ],
                rows,
            ),
        ]
    )


def _runs(values: Mapping[str, Any]) -> Markup:
    keys = list(next(iter(values["runs"].values())))
    rows = [
        [
            name,
            *(
                None
                if facts[key] is None
                else text(facts[key])
                if isinstance(facts[key], int)
                else short(facts[key])
                for key in keys
            ),
        ]
        for name, facts in values["runs"].items()
    ]
    return table(
        "What was trained", [Column("run", numeric=False), *(key.replace("_", " ") for key in keys)], rows
    )
