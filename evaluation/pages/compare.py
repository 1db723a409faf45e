"""The page of a comparison of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tsugiki.experiment.pages.charts import Line, line_chart, short, thin
from tsugiki.experiment.pages.html import (
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
from tsugiki.experiment.pages.languages import labelled, language_name

_AXES = {
    "bytes": "bytes of text trained on",
    "tokens": "tokens trained on",
    "flops": "FLOPs of training",
}
_COLOURS = 8
_SHOWN = 4
"""Languages whose curves are shown at once."""


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
            *_effort(values),
            Section("curves", "Along the way", _curves(values, colours)),
            Section("vocabulary", "Vocabulary", _vocabulary(values, colours)),
            Section("runs", "Runs", _runs(values)),
            *_settings(values),
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


def _effort(values: Mapping[str, Any]) -> list[Section]:
    """What was reached for equal cost; nothing when there are no curves that overlap."""
    if not values["equal_effort"]:
        return []
    names = list(values["runs"])
    efforts: dict[str, Any] = values["equal_effort"]
    languages = dict.fromkeys(language for entry in efforts.values() for language in entry["bits_per_byte"])
    columns: list[Column | str] = [Column("language", numeric=False)]
    for axis, entry in efforts.items():
        columns += [
            Column(f"{name}, {short(entry['at'])} {axis if axis != 'flops' else 'FLOPs'}") for name in names
        ]
    rows = []
    for language in languages:
        cells: list[Markup | None] = []
        for entry in efforts.values():
            reached = entry["bits_per_byte"].get(language)
            if reached is None:
                cells += [None] * len(names)
                continue
            best = min(reached.values())
            cells += [
                tag("span", number(reached[name], ".3f"), class_="better" if reached[name] == best else None)
                for name in names
            ]
        rows.append([labelled(language), *cells])
    return [
        Section(
            "effort",
            "At equal cost",
            join(
                [
                    tag(
                        "p",
                        "Held-out bits per byte of each run at the point where the first of them ended, by "
                        "each measure of cost; as measured during training, linear between measurements. "
                        "The best is coloured; there are no intervals here.",
                    ),
                    table("Held-out bits per byte at equal cost", columns, rows),
                ]
            ),
        )
    ]


def _curves(values: Mapping[str, Any], colours: Mapping[str, str]) -> Markup:
    languages = [
        language
        for language in values["languages"]
        if any(values["curves"][name].get(language) for name in colours)
    ]
    if not languages:
        return note("No validation during training in any run.", "missing")
    drawn = [_curves_of(values, colours, language) for language in languages]
    blocks: list[Markup] = [
        tag(
            "p",
            "Held-out bits per byte over three measures of cost. Runs with different vocabularies see "
            "different amounts of text in the same number of tokens, and spend different work on a token. "
            "FLOPs are those of training, forward and backward, attention counted causal.",
        ),
        _key(colours),
        *drawn[:_SHOWN],
    ]
    if len(drawn) > _SHOWN:
        blocks.append(details(f"{len(drawn) - _SHOWN} more languages", join(drawn[_SHOWN:])))
    return join(blocks)


def _curves_of(values: Mapping[str, Any], colours: Mapping[str, str], language: str) -> Markup:
    """The charts of one language, one per measure of cost that is known."""
    figures = []
    for axis, title in _AXES.items():
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
    return tag("div", join(figures), class_="multiples")


def _vocabulary(values: Mapping[str, Any], colours: Mapping[str, str]) -> Markup:
    per_byte = values["tokens_per_byte"]
    largest = max((rate for rates in per_byte.values() for rate in rates.values()), default=0.0)
    if not largest:
        return note("None of the runs has been evaluated.", "missing")
    names = list(colours)
    rows = [
        [
            labelled(language),
            join(bar(rates[name], largest, f"k{colours[name]}") for name in names if name in rates),
            *(number(rates[name], ".4f") if name in rates else None for name in names),
            *(
                f"{rates[name] / rates[names[0]]:.1%}" if name in rates and names[0] in rates else None
                for name in names[1:]
            ),
        ]
        for language, rates in per_byte.items()
        if rates
    ]
    sizes = "; ".join(
        f"{name} has {facts['vocabulary_size']:,} pieces"
        + (f", {facts['new_pieces']:,} of them new" if facts["new_pieces"] else "")
        for name, facts in values["runs"].items()
        if facts["vocabulary_size"]
    )
    return join(
        [
            tag("p", f"{sizes}.") if sizes else Markup(""),
            _key(colours),
            table(
                "Tokens per byte of held-out text",
                [
                    Column("language", numeric=False),
                    Column("tokens per byte", numeric=False),
                    *(Column(name) for name in names),
                    *(Column(f"{name} / {names[0]}", hint="tokens needed") for name in names[1:]),
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


def _settings(values: Mapping[str, Any]) -> list[Section]:
    """Settings that differ between the runs."""
    names = list(values["runs"])
    if not values["settings"]:
        return []
    rows = [
        [
            tag("code", key),
            *(
                tag("span", _clipped(found[name]), class_="small") if name in found else None
                for name in names
            ),
        ]
        for key, found in values["settings"].items()
    ]
    columns = [Column("setting", numeric=False), *(Column(name, numeric=False) for name in names)]
    return [Section("settings", "What differs", table("Settings that differ", columns, rows))]


def _clipped(value: object) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 90 else written[:89] + "…"
