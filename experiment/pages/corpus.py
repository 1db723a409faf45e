"""What the pages of the corpus stage and of a whole run both say about ``corpus/report.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.experiment.pages.formats import clipped, percent, size
from tsugiki.experiment.pages.tables import (
    Cell,
    Column,
    Language,
    Stack,
    Styled,
    Table,
    bars_column,
    text_columns,
)

Source = Mapping[str, Any]
_KEPT = "kept"
_OTHER = "other rules"
_COLOURS = 6
_EXAMPLE = 110


def step_of(rule: str) -> str:
    """The step that a rule belongs to: ``gopher`` of ``gopher.too_short``."""
    return rule.partition(".")[0]


def dropped_by_step(source: Source) -> dict[str, int]:
    """Documents that each step removed."""
    found: dict[str, int] = {}
    for rule, count in source["dropped"].items():
        found[step_of(rule)] = found.get(step_of(rule), 0) + count["documents"]
    return found


def offered(source: Source) -> int:
    """Documents that the records could become: a translation pair may become two."""
    return int(source.get("offered", source["read"]["documents"]))


def source_anchor(name: str) -> str:
    """Id of a source's section, which is none of the page's other ids."""
    return f"source-{name}"


def rules_in_order(source: Source) -> list[tuple[str, dict[str, int]]]:
    """Rules with what they removed, the most effective first."""
    return sorted(source["dropped"].items(), key=lambda item: (-item[1]["documents"], item[0]))


@dataclass(frozen=True)
class Overview:
    """Documents per source from reading to keeping.

    Attributes:
        totals: documents by ``read``, ``extracted``, ``filtered`` and ``kept``.
        kept_bytes: text kept.
        legend: steps that removed documents, and their colours.
        table: a row for each source.
    """

    totals: Mapping[str, int]
    kept_bytes: str
    legend: Sequence[tuple[str, str]]
    table: Table

    @classmethod
    def of(cls, sources: Sequence[Source], *, linked: bool = False) -> Overview:
        """Add sources up; ``linked`` names lead to sections of the same page."""
        groups = _most_effective(sources)
        colours = {name: str(position + 2) for position, name in enumerate(groups)}
        stacks = [_stack(source, colours) for source in sources]
        used = {name: colour for stack in stacks for name, value, colour in stack.parts if value}
        order = [_KEPT, *groups, _OTHER]
        return cls(
            totals={
                part: sum(source[part]["documents"] for source in sources)
                for part in ("read", "extracted", "filtered", "kept")
            },
            kept_bytes=size(sum(source["kept"]["bytes"] for source in sources)),
            legend=[(name, used[name]) for name in order if name in used],
            table=Table(
                "Documents per source from reading to keeping",
                [
                    *text_columns("source", "language"),
                    Column("read", hint="documents or pages read"),
                    Column("with text", hint="after extraction"),
                    Column("after filters", hint="language, quality"),
                    Column("kept", hint="after deduplication"),
                    "kept, %",
                    Column("kept text", hint="UTF-8"),
                    Column("held out", hint="documents never trained on"),
                    bars_column("where the documents went"),
                ],
                [_row(source, stack, linked=linked) for source, stack in zip(sources, stacks, strict=True)],
            ),
        )


def _row(source: Source, stack: Stack, *, linked: bool) -> list[Cell]:
    name = source["name"]
    return [
        Styled(name, "link", source_anchor(name)) if linked else name,
        Language(source["language"]),
        *(source[part]["documents"] for part in ("read", "extracted", "filtered", "kept")),
        percent(source["kept"]["documents"], offered(source)),
        size(source["kept"]["bytes"]),
        source["heldout"]["documents"],
        stack,
    ]


def _most_effective(sources: Sequence[Source]) -> list[str]:
    """Steps that removed most documents, as many as there are colours for."""
    counts: dict[str, int] = {}
    for source in sources:
        for step, documents in dropped_by_step(source).items():
            counts[step] = counts.get(step, 0) + documents
    return sorted((name for name in counts if counts[name]), key=lambda name: (-counts[name], name))[
        :_COLOURS
    ]


def _stack(source: Source, colours: Mapping[str, str]) -> Stack:
    parts: dict[str, float] = {_KEPT: source["kept"]["documents"], **dict.fromkeys(colours, 0), _OTHER: 0}
    for step, documents in dropped_by_step(source).items():
        parts[step if step in colours else _OTHER] += documents
    shown = {_KEPT: "r", **colours, _OTHER: "8"}
    return Stack(tuple((name, value, shown[name]) for name, value in parts.items()))


def rules_table(source: Source) -> Table:
    """Rules of a source, with an example of what each removed."""
    examples: dict[str, str] = {}
    for sample in source.get("samples", []):
        excerpt = " ".join(str(sample.get("text", "")).split())
        if excerpt:
            examples.setdefault(sample["rule"], clipped(excerpt, _EXAMPLE))
    total = source["kept"]["documents"] + sum(dropped_by_step(source).values())
    return Table(
        f"Rules that removed documents of {source['name']}",
        [*text_columns("rule"), "documents", "of all", "text", *text_columns("for example")],
        [
            [
                rule,
                count["documents"],
                percent(count["documents"], total),
                size(count["bytes"]),
                Styled(examples.get(rule, "")),
            ]
            for rule, count in rules_in_order(source)
        ],
    )
