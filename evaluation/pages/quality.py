"""What the report says about base and result: bits per byte, perplexity, samples; the figures at its top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.evaluation.benchmarks.suites import published_perplexities
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.evaluation.pages.results import (
    perplexity_sets_table,
    perplexity_table,
    relative_change,
    scores_table,
)
from tsugiki.experiment.pages.formats import duration
from tsugiki.experiment.pages.languages import language_name
from tsugiki.experiment.pages.page import Missing
from tsugiki.experiment.pages.tables import (
    Cell,
    Number,
    Styled,
    Table,
    text_columns,
)


@dataclass(frozen=True)
class Quality:
    """Base against result.

    Attributes:
        scores: bits per byte by language.
        unknown: (model, languages with their unknown tokens), where a model cannot express all of the text.
        perplexities: tables of perplexities.
        published: the sets beside published figures.
        source: where those are from.
        protocol: how it was measured.
    """

    scores: Table
    unknown: Sequence[tuple[str, str]]
    perplexities: Sequence[Table]
    published: Table | None
    source: str
    protocol: Mapping[str, Any]


def headline(artefacts: Artefacts) -> tuple[str, list[tuple[str, str]]]:
    """Subtitle and the row of figures at the top of the page."""
    cards: list[tuple[str, str]] = []
    results = artefacts.results
    if results is not None:
        ordered = sorted(results["difference"], key=lambda item: relative_change(results, item))
        for language in ordered[:3]:
            cards.append(
                (
                    format(relative_change(results, language), "+.0%"),
                    f"bits per byte, {language_name(language)}",
                )
            )
        if "en" in results["difference"] and "en" not in ordered[:3]:
            cards.append((format(relative_change(results, "en"), "+.1%"), "bits per byte, English"))
    if artefacts.added_rows:
        cards.append((f"{artefacts.added_rows:,}", "new pieces in the vocabulary"))
    if artefacts.mixture is not None:
        cards.append((f"{artefacts.mixture['total_tokens']:,}", "tokens of continued pretraining"))
    started = sorted(manifest.started for manifest in artefacts.manifests.values())
    seconds = sum(manifest.seconds for manifest in artefacts.manifests.values())
    subtitle = "What was done to the model and what it gained"
    if started:
        subtitle += f" · {started[0][:10]} · {duration(seconds)} in all stages"
    return subtitle, cards


def quality(artefacts: Artefacts, published: Sequence[str] = ()) -> Quality | Missing:
    """Bits per byte before and after; perplexities, with the published rows that are named."""
    results = artefacts.results
    if results is None:
        return Missing("No evaluate/results.json: base and result were not compared.")
    tables = [perplexity_table(results)]
    beside, source = None, ""
    if results.get("perplexity_sets"):
        tables.append(perplexity_sets_table(results))
        beside, source = _published_perplexities(results, published)
    return Quality(
        scores=scores_table(results),
        unknown=[
            (name, ", ".join(f"{language_name(code)} {count:,}" for code, count in found.items()))
            for name in ("base", "result")
            if (found := {code: count for code, count in results[name]["unknown_tokens"].items() if count})
        ],
        perplexities=tables,
        published=beside,
        source=source,
        protocol=results["protocol"],
    )


def _published_perplexities(results: Mapping[str, Any], published: Sequence[str]) -> tuple[Table | None, str]:
    """The sets as columns, the models of this run and the published rows that are named below each other."""
    table_of = published_perplexities()
    rows = {row: values for row, values in table_of["published"].items() if row in published}
    sets = {
        name: entry
        for name, entry in results["perplexity_sets"].items()
        if any(values.get(name.removesuffix("-continued")) is not None for values in rows.values())
    }
    if not sets:
        return None, ""
    lines: list[list[Cell]] = [
        [f"this run: {model}", *(Number(entry[model]["perplexity"], ",.2f") for entry in sets.values())]
        for model in ("base", "result")
    ]
    for row, values in rows.items():
        cells = [values.get(name.removesuffix("-continued")) for name in sets]
        lines.append([Styled(row), *(None if cell is None else Number(cell, ",.2f") for cell in cells)])
    columns = [*text_columns("model"), *sets]
    return Table("Perplexity beside published figures", columns, lines, caption_shown=True), table_of[
        "source"
    ]


@dataclass(frozen=True)
class Sample:
    """A prompt and what was made of it.

    Attributes:
        language: code, for the browser.
        name: of the language.
        prompt: what the models were given.
        written: (who wrote it, text).
    """

    language: str
    name: str
    prompt: str
    written: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Samples:
    """Continuations side by side: some of each language at once, the rest behind a line."""

    shown: Sequence[Sample]
    rest: Sequence[Sample]


def samples(artefacts: Artefacts, per_language: int) -> Samples | Missing:
    """Greedy continuations side by side."""
    if not artefacts.samples:
        return Missing("No evaluate/samples.jsonl: the models were not asked to write.")
    by_language: dict[str, list[Sample]] = {}
    for record in artefacts.samples:
        written = [(name, record[name]) for name in ("base", "result")]
        if record.get("reference"):
            written.append(("document", record["reference"]))
        code = record["language"]
        sample = Sample(code, language_name(code), record["prompt"], written)
        by_language.setdefault(code, []).append(sample)
    return Samples(
        shown=[item for items in by_language.values() for item in items[:per_language]],
        rest=[item for items in by_language.values() for item in items[per_language:]],
    )
