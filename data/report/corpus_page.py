"""``report.html`` of the corpus: one page, no external files, drawn from ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data.filters.base import ordered_filters, rule_of
from tsugiki.experiment.pages.corpus import (
    Overview,
    dropped_by_step,
    offered,
    rules_in_order,
    rules_table,
    source_anchor,
)
from tsugiki.experiment.pages.formats import clipped, percent, size
from tsugiki.experiment.pages.page import Page, Section
from tsugiki.experiment.pages.tables import (
    Bar,
    Bars,
    Cell,
    Language,
    Number,
    Stack,
    Table,
    bars_column,
    text_columns,
)

TEMPLATE = Path(__file__).with_name("corpus.html.jinja")
_SAMPLE_CHARACTERS = 700
_SAMPLES = 3
_SHOWN_LANGUAGES = 5
Values = Mapping[str, Any]


def _steps() -> list[str]:
    """In the order of the pipeline; the part of a rule's name before the dot."""
    before = ("skipped", "read", "blocked_url", "extraction", "pair")
    after = ("duplicate", "line_dedup", "contaminated")
    return [*before, *map(rule_of, ordered_filters()), *after]


def _histograms() -> list[tuple[str, str]]:
    """Name of a histogram and its title. Scores are of the documents that reach the rule."""
    return [
        ("characters", "Kept documents by characters"),
        ("cluster_size", "Kept documents by size of their cluster of near-duplicates"),
        *(
            (histogram.name, histogram.title)
            for entry in ordered_filters()
            for histogram in entry.facts.get("histograms", ())
        ),
    ]


def corpus_page(values: Values) -> Page:
    """The page for the values of ``report.json``."""
    sources = values["sources"]
    offers = sum(offered(source) for source in sources)
    overview = Overview.of(sources, linked=True)
    kept = overview.totals["kept"]
    seconds = sum(values["seconds"].values())
    return Page(
        "Corpus report",
        f"{kept:,} of {offers:,} documents kept ({percent(kept, offers) or '–'}), {overview.kept_bytes} of text, "
        f"{len(sources)} sources, {seconds:,.0f} s.",
        [
            Section("overview", "Sources", overview),
            Section("languages", "Languages", _languages(sources)),
            Section("evaluation", "Evaluation data", _evaluation(values)),
            *(
                Section(
                    "source",
                    source["name"],
                    _source(source),
                    f"{source['language']}, {source['kind']}",
                    anchor=source_anchor(source["name"]),
                )
                for source in sources
            ),
            Section("times", "Where the time went", _times(values)),
        ],
    )


def _languages(sources: Sequence[Values]) -> Table:
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(source["language"] for source in sources):
        members = [source for source in sources if source["language"] == name]
        found: dict[str, int] = {}
        for source in members:
            for label, count in source["histograms"].get("language_found", {}).items():
                found[label] = found.get(label, 0) + count
        others = sorted(
            ((label, count) for label, count in found.items() if label != name), key=lambda item: -item[1]
        )
        rows.append(
            [
                Language(name),
                len(members),
                sum(source["kept"]["documents"] for source in members),
                size(sum(source["kept"]["bytes"] for source in members)),
                ", ".join(f"{label} {count:,}" for label, count in others[:_SHOWN_LANGUAGES]) or None,
            ]
        )
    columns = [*text_columns("language"), "sources", "documents", "text"]
    return Table("Languages", [*columns, *text_columns("other languages found")], rows)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation data that was looked for: how many items, how many too short for a match, and the hits."""

    items: int
    too_short: int
    hits: Table


def _evaluation(values: Values) -> Evaluation | None:
    if "evaluation" not in values:
        return None
    rows: list[list[Cell]] = [
        [source["name"], name, *(counts[key] for key in ("documents", "items", "hits"))]
        for source in values["sources"]
        for name, counts in source["contamination"].items()
    ]
    columns = [*text_columns("source", "evaluation set"), "documents", "items", "hits"]
    return Evaluation(
        values["evaluation"]["items"], values["evaluation"]["too_short"], Table("Hits", columns, rows)
    )


@dataclass(frozen=True)
class Sample:
    """A document that was dropped: where it is from and why, and the start of its text."""

    facts: str
    text: str


@dataclass(frozen=True)
class SourcePage:
    """What was done to a source.

    Attributes:
        total: documents read or refused.
        steps: what each step leaves and takes.
        histograms: lengths and scores.
        counters: what was changed without dropping a document.
        rules: what each rule dropped.
        samples: (rule, number of samples, some of them).
    """

    total: int
    steps: Table
    histograms: Sequence[Table]
    counters: str
    rules: Table
    samples: Sequence[tuple[str, int, Sequence[Sample]]]


def _source(source: Values) -> SourcePage:
    steps, total = _waterfall(source)
    limits = source["limits"]
    by_rule: dict[str, list[Sample]] = {}
    for sample in source["samples"]:
        by_rule.setdefault(sample["rule"], []).append(_sample(sample))
    return SourcePage(
        total=total,
        steps=steps,
        histograms=[
            _histogram(title + (f", {limits[key]}" if key in limits else ""), source["histograms"][key])
            for key, title in _histograms()
            if source["histograms"].get(key)
        ],
        counters=", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in source["counters"].items()),
        rules=rules_table(source),
        samples=[
            (rule, len(by_rule[rule]), by_rule[rule][:_SAMPLES])
            for rule, _ in rules_in_order(source)
            if rule in by_rule
        ],
    )


def _waterfall(source: Values) -> tuple[Table, int]:
    """Documents that each step leaves and takes, from what was read to what is kept; how many there were."""
    dropped = dropped_by_step(source)
    known = _steps()
    order = [step for step in known if step in dropped] + sorted(set(dropped) - set(known))
    kept, heldout = source["kept"]["documents"], source["heldout"]["documents"]
    total = remaining = kept + sum(dropped.values())
    rows: list[list[Cell]] = []
    for step in order:
        gone = dropped[step]
        remaining -= gone
        bar = Stack((("left over", remaining, "rest"), ("dropped by this step", gone, "2")), total)
        rows.append([step, bar, -gone, remaining])
    bar = Stack((("kept for training", kept - heldout, "r"), ("held out", heldout, "3")), total)
    rows.append(["kept", bar, None, kept])
    columns = [*text_columns("step"), bars_column(""), "dropped", "left over"]
    return Table("Documents left after each step", columns, rows), total


def _histogram(title: str, bins: Mapping[str, int]) -> Table:
    most = max(bins.values())
    rows: list[list[Cell]] = [
        # "<= 0000100" sorts before "> 0100000" and is shown without the zeros.
        [_bin_label(label), Bars((Bar(count, most),)), count]
        for label, count in sorted(bins.items())
    ]
    return Table(title, ["bin", bars_column(""), "documents"], rows)


def _bin_label(label: str) -> str:
    if "." in label:
        return f"{float(label):g}"
    sign, _, number = label.rpartition(" ")
    if not number.isdigit():
        return label
    return f"{sign.replace('<=', '≤')} {int(number):,}".strip()


def _sample(sample: Values) -> Sample:
    facts = [sample["id"], *(str(sample[key]) for key in ("url", "detail") if sample.get(key))]
    if "language_share" in sample:
        facts.append(f"share in the language {sample['language_share']}")
    return Sample(" · ".join(facts), clipped(sample["text"], _SAMPLE_CHARACTERS))


@dataclass(frozen=True)
class Times:
    """Seconds of the passes, and of the steps of the first one."""

    passes: Table
    steps: Table


def _times(values: Values) -> Times:
    steps: dict[str, float] = {}
    for source in values["sources"]:
        for step, seconds in source["seconds"].items():
            steps[step] = steps.get(step, 0.0) + seconds
    total = sum(steps.values())
    passes = Table(
        "Seconds of each pass",
        [*text_columns("pass"), "s"],
        [[name, Number(seconds, ",.1f")] for name, seconds in values["seconds"].items()],
    )
    ordered = sorted(steps.items(), key=lambda item: -item[1])
    rows: list[list[Cell]] = [
        [step, Number(seconds, ",.1f"), percent(seconds, total)] for step, seconds in ordered
    ]
    return Times(passes, Table("Seconds of each step", [*text_columns("step"), "s", "share"], rows))
