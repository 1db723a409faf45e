"""Sections of the report about the model: quality, samples, training, export, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.evaluation.benchmarks.suites import published_perplexities
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.experiment.pages.html import (
    Column,
    Markup,
    Section,
    badge,
    bar,
    details,
    facts,
    join,
    legend,
    note,
    number,
    table,
    tag,
    text,
)
from tsugiki.experiment.pages.languages import labelled, language_name
from tsugiki.experiment.stage_names import STAGE_NAMES

_MARKED_CHANGE = 0.005
"""Without an interval, changes below half a percent are not coloured."""


def headline(artefacts: Artefacts) -> tuple[Markup, Markup]:
    """Subtitle and the row of figures at the top of the page."""
    tiles: list[tuple[str, str]] = []
    results = artefacts.results
    if results is not None:
        ordered = sorted(results["difference"], key=lambda item: _relative(results, item))
        for language in ordered[:3]:
            tiles.append(
                (number(_relative(results, language), "+.0%"), f"bits per byte, {language_name(language)}")
            )
        if "en" in results["difference"] and "en" not in ordered[:3]:
            tiles.append((number(_relative(results, "en"), "+.1%"), "bits per byte, English"))
    if artefacts.added_rows:
        tiles.append((f"{artefacts.added_rows:,}", "new pieces in the vocabulary"))
    if artefacts.mixture is not None:
        tiles.append((f"{artefacts.mixture['total_tokens']:,}", "tokens of continued pretraining"))
    started = sorted(manifest.started for manifest in artefacts.manifests.values())
    seconds = sum(manifest.seconds for manifest in artefacts.manifests.values())
    subtitle = "What was done to the model and what it gained"
    if started:
        subtitle += f" · {started[0][:10]} · {_duration(seconds)} in all stages"
    cells = join(
        tag("div", join([tag("b", value), tag("span", label)]), class_="tile") for value, label in tiles
    )
    return text(subtitle), tag("div", cells, class_="tiles")


def _relative(results: Mapping[str, Any], language: str) -> float:
    change: float = results["difference"][language]["bits_per_byte"]
    before: float = results["base"]["bits_per_byte"][language]
    return change / before


def quality_section(artefacts: Artefacts, published: Sequence[str] = ()) -> Section:
    """Bits per byte before and after; perplexities, with the published rows that are named."""
    results = artefacts.results
    if results is None:
        return Section(
            "quality",
            "Base against result",
            note("No evaluate/results.json: base and result were not compared.", "missing"),
        )
    base, result = results["base"], results["result"]
    values = [*base["bits_per_byte"].values(), *result["bits_per_byte"].values()]
    bounds = [
        interval[1]
        for model in (base, result)
        for interval in model.get("bits_per_byte_interval", {}).values()
        if interval
    ]
    largest = max([*values, *bounds], default=1.0)
    rows = []
    for language, before in base["bits_per_byte"].items():
        after = result["bits_per_byte"][language]
        difference = results["difference"][language]
        relative = _relative(results, language)
        intervals = [model.get("bits_per_byte_interval", {}).get(language) for model in (base, result)]
        rows.append(
            [
                labelled(language),
                join(
                    [
                        bar(before, largest, "base", intervals[0]),
                        bar(after, largest, "result", intervals[1]),
                    ]
                ),
                f"{before:.3f}",
                f"{after:.3f}",
                _difference(difference),
                tag("span", number(relative, "+.1%"), class_=_direction(relative, difference["interval"])),
                f"{base['tokens'][language]:,} → {result['tokens'][language]:,}",
                results["documents"][language],
            ]
        )
    protocol = results["protocol"]
    return Section(
        "quality",
        "Base against result",
        join(
            [
                tag(
                    "p",
                    "Bits per byte on documents that were held out of training: how many bits the model "
                    "needs for a byte of text. It does not depend on the vocabulary; lower is better.",
                ),
                legend([("base", "kb"), ("result", "kr")]),
                table(
                    "Bits per byte of base and result on held-out text",
                    [
                        Column("language", numeric=False),
                        Column("bits per byte", numeric=False),
                        "base",
                        "result",
                        Column("difference", hint=f"with its {protocol['confidence']:.0%} interval"),
                        "change",
                        Column("tokens", hint="of the same text, base → result"),
                        Column("documents"),
                    ],
                    rows,
                ),
                _unknown(results),
                _perplexities(results, published),
                tag(
                    "p",
                    f"Intervals: {protocol['confidence']:.0%}, {protocol['interval']}; a change is coloured "
                    "when its interval excludes zero. Tokens: "
                    f"{protocol['tokens']}. Windows of {protocol['window_tokens']:,} tokens, stride "
                    f"{protocol['stride_tokens']:,}. Bits per byte = {protocol['bits_per_byte']}. Weights in "
                    f"{protocol['dtype']}.",
                    class_="small",
                ),
            ]
        ),
    )


def _difference(difference: Mapping[str, Any]) -> Markup:
    shown = number(difference["bits_per_byte"], "+.3f")
    interval = difference["interval"]
    if interval is None:
        return shown
    bounds = Markup(", ".join(number(bound, "+.3f") for bound in interval))
    return join([shown, " ", tag("span", Markup(f"[{bounds}]"), class_="small")])


def _direction(relative: float, interval: Sequence[float] | None) -> str | None:
    """Colour of a change: none when its interval holds zero, or when it is tiny and has no interval."""
    certain = abs(relative) >= _MARKED_CHANGE if interval is None else interval[0] * interval[1] > 0
    if not certain:
        return None
    return "better" if relative < 0 else "worse"


def _unknown(results: Mapping[str, Any]) -> Markup:
    notes = []
    for name in ("base", "result"):
        counts = {language: count for language, count in results[name]["unknown_tokens"].items() if count}
        if counts:
            listed = ", ".join(f"{language_name(code)} {count:,}" for code, count in counts.items())
            notes.append(
                note(
                    f"The {name} cannot express all of the text (unknown tokens: {listed}): its bits per "
                    "byte are lower than they should be.",
                    "missing",
                )
            )
    return join(notes)


def _perplexities(results: Mapping[str, Any], published: Sequence[str]) -> Markup:
    base, result = results["base"], results["result"]
    parts = [
        table(
            "Perplexity on the same text",
            [
                Column("language", numeric=False),
                Column("base, own tokens"),
                Column("result, own tokens"),
                Column("base"),
                Column("result, per token of the base"),
            ],
            [
                [
                    labelled(language),
                    *(f"{model['perplexity'][language]:,.2f}" for model in (base, result)),
                    *(f"{model['perplexity_per_base_token'][language]:,.2f}" for model in (base, result)),
                ]
                for language in base["bits_per_byte"]
            ],
        ),
        tag(
            "p",
            "Perplexities over a model's own tokens cannot be compared between vocabularies; those per token "
            "of the base can.",
            class_="small",
        ),
    ]
    if results.get("perplexity_sets"):
        rows = [
            [
                f"{name} ({' + '.join(entry['languages'])})",
                entry["documents"],
                *(f"{entry[model]['perplexity']:,.2f}" for model in ("base", "result")),
                *(
                    None if (bits := entry[model]["bits_per_byte"]) is None else f"{bits:.3f}"
                    for model in ("base", "result")
                ),
            ]
            for name, entry in results["perplexity_sets"].items()
        ]
        parts.append(
            table(
                "Perplexity over several languages together",
                [
                    Column("set", numeric=False),
                    "documents",
                    "base",
                    "result",
                    "base, bits per byte",
                    "result, bits per byte",
                ],
                rows,
                hide_caption=False,
            )
        )
        parts.append(_published_perplexities(results, published))
    return details("Perplexity", join(parts))


def _published_perplexities(results: Mapping[str, Any], published: Sequence[str]) -> Markup:
    """The sets as columns, the models of this run and the published rows that are named below each other."""
    table_of = published_perplexities()
    rows = {row: values for row, values in table_of["published"].items() if row in published}
    columns = {
        name: entry
        for name, entry in results["perplexity_sets"].items()
        if any(values.get(name.removesuffix("-continued")) is not None for values in rows.values())
    }
    if not columns:
        return Markup("")
    lines: list[list[object]] = [
        [f"this run: {model}", *(f"{entry[model]['perplexity']:,.2f}" for entry in columns.values())]
        for model in ("base", "result")
    ]
    for row, values in rows.items():
        cells = [values.get(name.removesuffix("-continued")) for name in columns]
        lines.append(
            [tag("span", row, class_="small"), *(None if cell is None else f"{cell:,.2f}" for cell in cells)]
        )
    return join(
        [
            table(
                "Perplexity beside published figures",
                [Column("model", numeric=False), *columns],
                lines,
                hide_caption=False,
            ),
            note(
                f"Other rows: {table_of['source']}. Over each model's own tokens and on other documents: "
                "they say how large such figures are, not which model is better."
            ),
        ]
    )


def samples_section(artefacts: Artefacts, per_language: int) -> Section:
    """Greedy continuations side by side."""
    if not artefacts.samples:
        return Section(
            "samples",
            "Samples",
            note("No evaluate/samples.jsonl: the models were not asked to write.", "missing"),
        )
    by_language: dict[str, list[Markup]] = {}
    for sample in artefacts.samples:
        by_language.setdefault(sample["language"], []).append(_sample(sample))
    shown = [block for blocks in by_language.values() for block in blocks[:per_language]]
    rest = [block for blocks in by_language.values() for block in blocks[per_language:]]
    introduction = "The most likely continuation of the same prompt by each model (greedy, not chosen)."
    return Section(
        "samples",
        "Samples",
        join(
            [
                tag("p", introduction),
                *shown,
                details(f"{len(rest)} more samples", join(rest)) if rest else "",
            ]
        ),
    )


def _sample(sample: Mapping[str, Any]) -> Markup:
    """A prompt and what each model made of it."""
    language: str = sample["language"]
    written = [(name, sample[name]) for name in ("base", "result")]
    if sample.get("reference"):
        written.append(("document", sample["reference"]))
    prompt = tag("b", f"{sample['prompt']} …", lang=language, dir="auto")
    nothing = tag("span", "nothing: the end of the text", class_="nothing")
    rows = join(
        join(
            [
                tag("dt", name),
                tag("dd", value, lang=language, dir="auto") if value.strip() else tag("dd", nothing),
            ]
        )
        for name, value in written
    )
    head = join([tag("dt", language_name(language)), tag("dd", prompt)])
    return tag("div", tag("dl", join([head, rows])), class_="sample")


def export_section(artefacts: Artefacts) -> Section:
    """Whether the exported model is the trained one."""
    checked = artefacts.verification
    if checked is None:
        return Section(
            "export", "Export", note("No export/verify.json: the exported model was not verified.", "missing")
        )
    passed = _within_tolerance(artefacts, checked)
    verdict = {True: "verified", False: "does not agree", None: "measured"}[passed]
    pairs = dict(_flattened(checked))
    return Section(
        "export",
        "Export",
        join(
            [
                tag(
                    "p",
                    join(
                        [
                            "The exported Hugging Face model against the training checkpoint: ",
                            badge(passed, verdict),
                        ]
                    ),
                ),
                facts(pairs),
            ]
        ),
    )


def _within_tolerance(artefacts: Artefacts, checked: Mapping[str, Any]) -> bool | None:
    """Whether the logits agree as well as the configuration asks; None when that is not known."""
    difference = checked.get("logits", {}).get("max_difference")
    manifest = artefacts.manifests.get("export")
    tolerance = None if manifest is None else (manifest.config or {}).get("verify_tolerance")
    return None if difference is None or tolerance is None else difference <= tolerance


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Numbers and words of a nested mapping under readable names; lists are left out."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            found.extend(_flattened(value, name))
        elif not isinstance(value, list) and key not in ("passed", "schema_version"):
            found.append((name, f"{value:.3g}" if isinstance(value, float) else value))
    return found


def environment_section(artefacts: Artefacts) -> Section:
    """Stages with their time, versions, configuration."""
    if not artefacts.manifests:
        return Section(
            "environment",
            "How it was made",
            note("No manifests: stages were run outside an experiment.", "missing"),
        )
    ordered = [name for name in STAGE_NAMES if name in artefacts.manifests]
    longest = max(artefacts.manifests[name].seconds for name in ordered)
    rows = [
        [
            name,
            bar(artefacts.manifests[name].seconds, longest),
            _duration(artefacts.manifests[name].seconds),
            artefacts.manifests[name].started.replace("T", " ")[:19],
            tag("code", artefacts.manifests[name].digest[:12]),
        ]
        for name in ordered
    ]
    last = artefacts.manifests[ordered[-1]]
    configurations = join(
        details(
            f"Configuration of {name}",
            tag("pre", json.dumps(artefacts.manifests[name].config, indent=2, ensure_ascii=False)),
        )
        for name in ordered
        if artefacts.manifests[name].config
    )
    return Section(
        "environment",
        "How it was made",
        join(
            [
                table(
                    "Stages and the time they took",
                    [
                        Column("stage", numeric=False),
                        Column("", numeric=False),
                        "time",
                        Column("started (UTC)"),
                        Column("content", numeric=False, hint="hash of the stage's output"),
                    ],
                    rows,
                ),
                facts({"git revision": last.git_revision, **last.versions}),
                configurations,
            ]
        ),
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
