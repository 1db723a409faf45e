"""What the report says about the data: corpus, vocabulary, mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.experiment.pages.corpus import Overview, dropped_by_step, rules_table
from tsugiki.experiment.pages.formats import percent, size
from tsugiki.experiment.pages.page import Missing
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

_SHOWN_PIECES = 60


@dataclass(frozen=True)
class Corpus:
    """The corpus: an overview, and for each source (name, documents removed, rules that removed them)."""

    overview: Overview
    dropped: Sequence[tuple[str, int, Table]]


def corpus(artefacts: Artefacts) -> Corpus | Missing:
    """Documents per source from reading to the end of filtering, and what removed them."""
    if artefacts.corpus is None:
        return Missing("No corpus/report.json: the corpus is not described.")
    sources = artefacts.corpus["sources"]
    return Corpus(
        Overview.of(sources),
        [
            (source["name"], sum(dropped_by_step(source).values()), rules_table(source))
            for source in sources
            if source["dropped"]
        ],
    )


@dataclass(frozen=True)
class Mixture:
    """What the model was trained on."""

    total_tokens: int
    vocabulary_size: int
    sources: Table
    stretches: Table | None = None
    """Shares by stretch of the training; None where they stay the same."""


def mixture(artefacts: Artefacts) -> Mixture | Missing:
    """What the model was trained on, in tokens of the final vocabulary."""
    if artefacts.mixture is None:
        return Missing("No tokens/mixture.json: the mixture is unknown.")
    sources: list[dict[str, Any]] = artefacts.mixture["sources"]
    largest = max((source["share"] for source in sources), default=1.0)
    rows: list[list[Cell]] = [
        [
            source["name"],
            Language(source["language"]),
            Bars((Bar(source["share"], largest),)),
            Number(source["share"], ".1%"),
            source["planned_tokens"],
            size(source["epochs"] * source["bytes"]),
            source["tokens"],
            Number(source["epochs"], ".2f"),
            Number(source["bytes"] / source["tokens"], ".2f") if source["tokens"] else None,
            source["heldout_documents"],
        ]
        for source in sources
    ]
    columns = [
        *text_columns("source", "language"),
        bars_column(""),
        "share",
        "tokens trained on",
        Column("text trained on", hint="UTF-8, repetitions included"),
        "tokens available",
        "epochs",
        "bytes per token",
        "held-out documents",
    ]
    return Mixture(
        artefacts.mixture["total_tokens"],
        artefacts.mixture["vocabulary_size"],
        Table("Sources of the training mixture", columns, rows),
        _stretches(artefacts.mixture),
    )


def _stretches(mixture: dict[str, Any]) -> Table | None:
    """Share of every source in each stretch of a mixture that changes."""
    changes = mixture.get("changes", [])
    if not changes:
        return None
    starts = [change["from_tokens"] for change in changes]
    ends = [*starts[1:], mixture["total_tokens"]]
    rows: list[list[Cell]] = [
        [source["name"], *(Number(change["shares"].get(source["name"], 0.0), ".1%") for change in changes)]
        for source in mixture["sources"]
    ]
    headings = [f"tokens {start:,} to {end:,}" for start, end in zip(starts, ends, strict=True)]
    return Table(
        "Share of each source along the training",
        [*text_columns("source"), *headings],
        rows,
        caption_shown=True,
    )


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary before and after.

    Attributes:
        base: pieces of the base; None when it was kept.
        added: rows added to it; None when that is not known.
        rows: in all.
        efficiency: tokens per language and tokenizer.
        legend: colours of the tokenizers.
        gates: checks it had to pass.
        new_rows: how the rows of new pieces started.
        longest: some of the new pieces.
        pieces: how many new pieces there are.
    """

    base: int | None
    added: int | None
    rows: int | None
    efficiency: Table | None
    legend: Sequence[tuple[str, str]]
    gates: Mapping[str, Cell]
    new_rows: Mapping[str, Cell]
    longest: Sequence[str]
    pieces: int


def vocabulary(artefacts: Artefacts) -> Vocabulary | Missing:
    """Tokens per language before and after the extension, gates, some of the new pieces."""
    report = artefacts.tokenizer
    if report is None:
        return Missing("No tokenizer/report.json: nothing was measured.")
    tokenizers: dict[str, dict[str, dict[str, Any]]] = report.get("tokenizers", {})
    first, *others = tokenizers or [""]
    pieces = sorted(
        (piece["piece"] for piece in artefacts.pieces if piece.get("base_ids")),
        key=lambda piece: (-len(piece), piece),
    )
    graft = artefacts.graft
    return Vocabulary(
        base=report.get("base_vocabulary"),
        added=artefacts.added_rows,
        rows=report.get("vocabulary_size"),
        efficiency=_efficiency(tokenizers) if tokenizers else None,
        legend=[(first, "b"), *((name, "r") for name in others)],
        gates={
            str(gate.get("name", "")).replace("_", " "): gate_verdict(gate)
            for gate in report.get("gates") or ()
        },
        new_rows=_new_rows(graft) if graft is not None and graft.get("init") else {},
        longest=pieces[:_SHOWN_PIECES],
        pieces=len(pieces),
    )


def _new_rows(graft: Mapping[str, Any]) -> dict[str, Cell]:
    """How the rows of the new pieces started."""
    pairs: dict[str, Cell] = {"rows": graft["new_rows"], "init": graft["init"]}
    done = graft.get("distillation")
    if done is not None:
        loss = done["hidden_loss"]
        pairs["trained"] = f"{done['pieces_trained']:,} pieces in {done['contexts']:,} contexts"
        pairs["in no context"] = f"{done['pieces_without_context']:,} pieces, which keep the mean"
        pairs["hidden states, mean squared difference"] = f"{loss['before']:.4g} → {loss['after']:.4g}"
        if "next_token_loss" in done:
            loss = done["next_token_loss"]
            pairs["output rows, nats per predicted token"] = f"{loss['before']:.3f} → {loss['after']:.3f}"
    for name, norms in graft["row_norms"].items():
        lengths = f"{norms['base_mean']:.3f} in the base, {norms['new_mean']:.3f} new"
        pairs[f"mean length of rows of {name}"] = lengths
    return pairs


def _efficiency(tokenizers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    names = list(tokenizers)
    first, last = names[0], names[-1]

    def per_byte(measured: Mapping[str, Any]) -> float:
        return float(measured["tokens"] / max(measured["bytes"], 1))

    largest = max((per_byte(item) for row in tokenizers.values() for item in row.values()), default=1.0)
    rows: list[list[Cell]] = []
    for language in dict.fromkeys(language for row in tokenizers.values() for language in row):
        found = [tokenizers[name].get(language) for name in names]
        before, after = found[0], found[-1]
        rows.append(
            [
                Language(language),
                Bars(
                    tuple(
                        Bar(per_byte(item), largest, "r" if position else "b")
                        for position, item in enumerate(found)
                        if item
                    )
                ),
                *(Number(per_byte(item), ".3f") if item else None for item in found),
                *(Number(item["tokens_per_character"], ".3f") if item else None for item in found),
                percent(after["tokens"], before["tokens"]) if before and after else None,
                size(before["bytes"]) if before else None,
            ]
        )
    columns = [
        *text_columns("language"),
        bars_column("tokens per byte"),
        *(f"{name}, per byte" for name in names),
        *(f"{name}, per character" for name in names),
        Column("tokens needed", hint=f"tokens of {last} relative to {first}"),
        "text measured",
    ]
    return Table("Tokens for the same text, by language and tokenizer", columns, rows)


def gate_verdict(gate: Mapping[str, Any]) -> Verdict:
    """Outcome of a check of the vocabulary, number of cases, remarks."""
    passed = None if gate.get("waived") else gate.get("passed")
    verdict = "waived" if gate.get("waived") else {True: "passed", False: "failed", None: "measured"}[passed]
    remarks = [f"{gate['checked']:,} checked"] if gate.get("checked") is not None else []
    if gate.get("failures"):
        remarks.append(f"{gate['failures']:,} failed")
    if gate.get("note"):
        remarks.append(gate["note"])
    return Verdict(passed, verdict, ", ".join(remarks))
