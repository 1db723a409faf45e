"""``results.json`` as a Markdown page, and the tables of perplexities that the report shows too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsugiki.experiment.pages.tables import Cell, Language, Number, Table, text_columns

_MODELS = ("base", "result")


def markdown(results: Mapping[str, Any], title: str) -> str:
    """The results as a Markdown page."""
    protocol = results["protocol"]
    parts = [
        f"# {title}: base against result",
        f"Bits per byte on held-out text with {protocol['confidence']:.0%} confidence intervals "
        f"({protocol['interval']}); lower is better.",
        _scores(results).markdown(),
        "Perplexity counts tokens of a model's own vocabulary, so the first two columns cannot be compared "
        "with each other; the last two are both per token of the base's vocabulary.",
        perplexity_table(results).markdown(),
    ]
    if results["perplexity_sets"]:
        parts.append("Perplexity over several languages together (own tokens):")
        parts.append(perplexity_sets_table(results).markdown())
    if results["benchmarks"]["base"]:
        parts.append(f"Benchmarks ({protocol['benchmarks']}):")
        parts.append(_benchmarks(results["benchmarks"]).markdown())
    for name in _MODELS:
        unknown = {language: count for language, count in results[name]["unknown_tokens"].items() if count}
        if unknown:
            listed = ", ".join(f"{language} {count:,}" for language, count in unknown.items())
            parts.append(
                f"**The {name} cannot express all of the text** (unknown tokens: {listed}); its bits per "
                "byte are lower than they should be."
            )
    parts.append(
        f"Protocol: {protocol['tokens']}. Windows of {protocol['window_tokens']:,} tokens, "
        f"stride {protocol['stride_tokens']:,}. Bits per byte = {protocol['bits_per_byte']}. "
        f"Weights in {protocol['dtype']}."
    )
    return "\n\n".join(parts) + "\n"


def _scores(results: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for language, size in results["bytes"].items():
        difference = results["difference"][language]
        change = difference["bits_per_byte"] / results["base"]["bits_per_byte"][language]
        rows.append(
            [
                Language(language),
                results["documents"][language],
                size,
                *(
                    Number(
                        results[model]["bits_per_byte"][language],
                        ".3f",
                        results[model]["bits_per_byte_interval"][language],
                    )
                    for model in _MODELS
                ),
                Number(difference["bits_per_byte"], "+.3f", difference["interval"]),
                Number(change, "+.1%"),
            ]
        )
    columns = [*text_columns("language"), "documents", "bytes", *_MODELS, "difference", "change"]
    return Table("Bits per byte", columns, rows)


def perplexity_table(results: Mapping[str, Any]) -> Table:
    """Perplexity by language: over each model's own tokens, and per token of the base."""
    return Table(
        "Perplexity on the same text",
        [
            *text_columns("language"),
            "base, own tokens",
            "result, own tokens",
            "base",
            "result, per base token",
        ],
        [
            [
                Language(language),
                *(
                    Number(results[model][measure][language], ",.2f")
                    for measure in ("perplexity", "perplexity_per_base_token")
                    for model in _MODELS
                ),
            ]
            for language in results["bytes"]
        ],
    )


def perplexity_sets_table(results: Mapping[str, Any]) -> Table:
    """Perplexity of sets of documents over several languages."""
    return Table(
        "Perplexity over several languages together",
        [*text_columns("set"), "documents", *_MODELS, "base, bits per byte", "result, bits per byte"],
        [
            [
                f"{name} ({'+'.join(entry['languages'])})",
                entry["documents"],
                *(Number(entry[model]["perplexity"], ",.2f") for model in _MODELS),
                *(
                    None if (bits := entry[model]["bits_per_byte"]) is None else Number(bits, ".3f")
                    for model in _MODELS
                ),
            ]
            for name, entry in results["perplexity_sets"].items()
        ],
        caption_shown=True,
    )


def _benchmarks(benchmarks: Mapping[str, Mapping[str, Any]]) -> Table:
    return Table(
        "Benchmarks",
        [*text_columns("benchmark"), "metric", "examples", "questions", *_MODELS],
        [
            [
                key,
                entry["metric"],
                str(entry["fewshot"]),
                entry["questions"],
                *(
                    Number(benchmarks[name][key]["value"], ".4f", benchmarks[name][key]["interval"])
                    for name in _MODELS
                ),
            ]
            for key, entry in benchmarks["base"].items()
        ],
    )
