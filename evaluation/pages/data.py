"""Sections of the report about the data: corpus, vocabulary, mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    stacked,
    table,
    tag,
)
from tsugiki.experiment.pages.languages import labelled

_OTHER = "other rules"
_KEPT = "kept"
_COLOURS = 7


def megabytes(size: float) -> str:
    """A number of bytes in MB, in kB when it is small."""
    if size < 1e4:
        return f"{size / 1e3:,.1f} kB"
    return f"{size / 1e3:,.0f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"


def corpus_section(artefacts: Artefacts) -> Section:
    """Documents per source from reading to the end of filtering, and what removed them."""
    if artefacts.corpus is None:
        return Section(
            "corpus", "Corpus", note("No corpus/report.json: the corpus is not described.", "missing")
        )
    sources: list[dict[str, Any]] = artefacts.corpus["sources"]
    groups = _rule_groups(sources)
    kinds = {_KEPT: "kr", **{name: f"k{position + 2}" for position, name in enumerate(groups)}, _OTHER: "k8"}
    rows = []
    for source in sources:
        read = source["read"]["documents"]
        kept = source["kept"]["documents"]
        rows.append(
            [
                source["name"],
                labelled(source["language"]),
                read,
                source["extracted"]["documents"],
                source["filtered"]["documents"],
                kept,
                f"{kept / read:.1%}" if read else None,
                megabytes(source["kept"]["bytes"]),
                source["heldout"]["documents"],
                stacked(_parts(source, groups), kinds),
            ]
        )
    total = {
        part: sum(source[part]["documents"] for source in sources)
        for part in ("read", "extracted", "filtered")
    }
    kept_documents = sum(source["kept"]["documents"] for source in sources)
    kept_bytes = sum(source["kept"]["bytes"] for source in sources)
    columns: list[Column | str] = [
        Column("source", numeric=False),
        Column("language", numeric=False),
        Column("read", hint="documents or pages read"),
        Column("with text", hint="after extraction"),
        Column("after filters", hint="language, quality"),
        Column("kept", hint="after deduplication"),
        "kept, %",
        Column("kept text", hint="UTF-8"),
        Column("held out", hint="documents never trained on"),
        Column("where the documents went", numeric=False),
    ]
    shown = [name for name in kinds if name != _OTHER or _has_other(sources, groups)]
    return Section(
        "corpus",
        "Corpus",
        join(
            [
                tag(
                    "p",
                    f"{total['read']:,} documents read, {total['extracted']:,} with text, "
                    f"{total['filtered']:,} after language and quality filters, {kept_documents:,} after "
                    f"deduplication: {megabytes(kept_bytes)} of text.",
                ),
                legend((name, kinds[name]) for name in shown),
                table("Documents per source from reading to keeping", columns, rows),
                *(_dropped(source) for source in sources),
            ]
        ),
    )


def _rule_groups(sources: list[dict[str, Any]]) -> list[str]:
    """Steps that removed documents, the most effective first as many as there are colours for."""
    counts: dict[str, int] = {}
    for source in sources:
        for rule, count in source["dropped"].items():
            step = rule.partition(".")[0]
            counts[step] = counts.get(step, 0) + count["documents"]
    ordered = sorted((name for name in counts if counts[name]), key=lambda name: (-counts[name], name))
    return ordered[: _COLOURS - 1]


def _parts(source: Mapping[str, Any], groups: list[str]) -> list[tuple[str, float]]:
    parts: dict[str, float] = {_KEPT: source["kept"]["documents"], **dict.fromkeys(groups, 0.0), _OTHER: 0.0}
    for rule, count in source["dropped"].items():
        step = rule.partition(".")[0]
        parts[step if step in groups else _OTHER] += count["documents"]
    return list(parts.items())


def _has_other(sources: list[dict[str, Any]], groups: list[str]) -> bool:
    return any(dict(_parts(source, groups))[_OTHER] for source in sources)


def _dropped(source: Mapping[str, Any]) -> Markup:
    """Rules of a source with an example of what each removed."""
    examples: dict[str, str] = {}
    for sample in source.get("samples", []):
        excerpt = " ".join(str(sample.get("text", "")).split())
        if excerpt and sample.get("rule") not in examples:
            examples[sample["rule"]] = excerpt if len(excerpt) <= 110 else excerpt[:110] + "…"
    rules = sorted(source["dropped"].items(), key=lambda item: (-item[1]["documents"], item[0]))
    if not rules:
        return Markup("")
    rows = [
        [
            rule,
            count["documents"],
            megabytes(count["bytes"]),
            tag("span", examples.get(rule, ""), class_="small", dir="auto"),
        ]
        for rule, count in rules
    ]
    removed = sum(count["documents"] for _, count in rules)
    return details(
        f"{source['name']}: {removed:,} documents removed by {len(rules)} rules",
        table(
            f"Rules that removed documents of {source['name']}",
            [Column("rule", numeric=False), "documents", "text", Column("for example", numeric=False)],
            rows,
        ),
    )


def mixture_section(artefacts: Artefacts) -> Section:
    """What the model was trained on, in tokens of the final vocabulary."""
    if artefacts.mixture is None:
        return Section(
            "mixture", "Training mixture", note("No tokens/mixture.json: the mixture is unknown.", "missing")
        )
    mixture = artefacts.mixture
    sources: list[dict[str, Any]] = mixture["sources"]
    largest = max((source["share"] for source in sources), default=1.0)
    rows = [
        [
            source["name"],
            labelled(source["language"]),
            bar(source["share"], largest),
            f"{source['share']:.1%}",
            source["planned_tokens"],
            megabytes(source["epochs"] * source["bytes"]),
            source["tokens"],
            f"{source['epochs']:.2f}",
            f"{source['bytes'] / source['tokens']:.2f}" if source["tokens"] else None,
            source["heldout_documents"],
        ]
        for source in sources
    ]
    return Section(
        "mixture",
        "Training mixture",
        join(
            [
                tag(
                    "p",
                    f"{mixture['total_tokens']:,} tokens of the final vocabulary "
                    f"({mixture['vocabulary_size']:,} entries). Shares are in tokens; an epoch is one pass "
                    "over a source.",
                ),
                table(
                    "Sources of the training mixture",
                    [
                        Column("source", numeric=False),
                        Column("language", numeric=False),
                        Column("", numeric=False),
                        "share",
                        Column("tokens trained on"),
                        Column("text trained on", hint="UTF-8, repetitions included"),
                        Column("tokens available"),
                        "epochs",
                        Column("bytes per token"),
                        Column("held-out documents"),
                    ],
                    rows,
                ),
            ]
        ),
    )


def tokenizer_section(artefacts: Artefacts) -> Section:
    """Tokens per language before and after the extension, gates, some of the new pieces."""
    report = artefacts.tokenizer
    if report is None:
        return Section(
            "vocabulary", "Vocabulary", note("No tokenizer/report.json: nothing was measured.", "missing")
        )
    parts: list[Markup] = []
    added = artefacts.added_rows
    if added is not None:
        parts.append(
            tag(
                "p",
                f"{report['base_vocabulary']:,} pieces of the base and {added:,} new ones make "
                f"{report['vocabulary_size']:,}."
                if added
                else f"The vocabulary of the base is kept: {report['vocabulary_size']:,} pieces.",
            )
        )
    tokenizers: dict[str, dict[str, dict[str, Any]]] = report.get("tokenizers", {})
    if tokenizers:
        parts.append(_efficiency(tokenizers))
    if report.get("gates"):
        parts.append(_gates(report["gates"]))
    if artefacts.graft is not None and artefacts.graft.get("init"):
        parts.append(_new_rows(artefacts.graft))
    longest = sorted(
        (piece["piece"] for piece in artefacts.pieces if piece.get("base_ids")),
        key=lambda piece: (-len(piece), piece),
    )
    if longest:
        listed = join((tag("code", piece) for piece in longest[:60]), " ")
        parts.append(details(f"The longest of {len(longest):,} new pieces", tag("p", listed, dir="auto")))
    return Section("vocabulary", "Vocabulary", join(parts))


def _new_rows(graft: Mapping[str, Any]) -> Markup:
    """How the rows of the new pieces started."""
    pairs: dict[str, Any] = {"rows": f"{graft['new_rows']:,}", "init": graft["init"]}
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
    return join([tag("h3", "New rows"), facts(pairs)])


def _efficiency(tokenizers: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Markup:
    names = list(tokenizers)
    first, last = names[0], names[-1]
    languages = list(dict.fromkeys(language for name in names for language in tokenizers[name]))
    largest = max(
        (
            measured["tokens"] / max(measured["bytes"], 1)
            for name in names
            for measured in tokenizers[name].values()
        ),
        default=1.0,
    )
    rows = []
    for language in languages:
        measured = [tokenizers[name].get(language) for name in names]
        per_byte = [item["tokens"] / max(item["bytes"], 1) if item else None for item in measured]
        before, after = tokenizers[first].get(language), tokenizers[last].get(language)
        relative = after["tokens"] / before["tokens"] if before and after and before["tokens"] else None
        bars = join(
            bar(value, largest, "base" if position == 0 else "result")
            for position, value in enumerate(per_byte)
            if value is not None
        )
        rows.append(
            [
                labelled(language),
                bars,
                *(f"{value:.3f}" if value is not None else None for value in per_byte),
                *(f"{item['tokens_per_character']:.3f}" if item else None for item in measured),
                f"{relative:.1%}" if relative is not None else None,
                megabytes(before["bytes"]) if before else None,
            ]
        )
    columns: list[Column | str] = [
        Column("language", numeric=False),
        Column("tokens per byte", numeric=False),
        *(Column(f"{name}, per byte") for name in names),
        *(Column(f"{name}, per character") for name in names),
        Column("tokens needed", hint=f"tokens of {last} relative to {first}"),
        Column("text measured"),
    ]
    return join(
        [
            legend([(first, "kb"), *((name, "kr") for name in names[1:])]),
            table("Tokens for the same text, by language and tokenizer", columns, rows),
        ]
    )


def _gates(gates: list[dict[str, Any]]) -> Markup:
    """Checks the vocabulary had to pass: verdict, number of cases, remarks."""
    pairs = {}
    for gate in gates:
        passed = None if gate.get("waived") else gate.get("passed")
        verdict = (
            "waived" if gate.get("waived") else {True: "passed", False: "failed", None: "measured"}[passed]
        )
        remarks = [f"{gate['checked']:,} checked"] if gate.get("checked") is not None else []
        if gate.get("failures"):
            remarks.append(f"{gate['failures']:,} failed")
        if gate.get("note"):
            remarks.append(gate["note"])
        name = str(gate.get("name", "")).replace("_", " ")
        pairs[name] = join([badge(passed, verdict), " ", tag("span", ", ".join(remarks), class_="small")])
    return join([tag("h3", "Checks of the vocabulary"), facts(pairs)])
