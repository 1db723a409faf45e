"""``results.json`` as a Markdown page, and its tables, which the report shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.experiment.pages.tables import (
    Bar,
    Bars,
    Cell,
    Column,
    Language,
    Number,
    Table,
    bars_column,
    text_columns,
)

_MODELS = ("base", "result")
_MARKED_CHANGE = 0.005
"""Without an interval, changes below half a percent are not coloured."""


def markdown(results: Mapping[str, Any], title: str) -> str:
    """The results as a Markdown page."""
    protocol = results["protocol"]
    parts = [
        f"# {title}: base against result",
        f"Bits per byte on held-out text with {protocol['confidence']:.0%} confidence intervals "
        f"({protocol['interval']}); lower is better.",
        scores_table(results).markdown(),
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


def relative_change(results: Mapping[str, Any], language: str) -> float:
    """Difference of bits per byte in a language, relative to the base."""
    change: float = results["difference"][language]["bits_per_byte"]
    before: float = results["base"]["bits_per_byte"][language]
    return change / before


def scores_table(results: Mapping[str, Any]) -> Table:
    """Bits per byte of both models and their difference, by language."""
    scores = {
        model: {
            language: (value, results[model].get("bits_per_byte_interval", {}).get(language))
            for language, value in results[model]["bits_per_byte"].items()
        }
        for model in _MODELS
    }
    found = [pair for by_language in scores.values() for pair in by_language.values()]
    most = max([value if interval is None else interval[1] for value, interval in found], default=1.0)
    rows: list[list[Cell]] = []
    for language, size in results["bytes"].items():
        pairs = [scores[model][language] for model in _MODELS]
        difference = results["difference"][language]
        relative = relative_change(results, language)
        rows.append(
            [
                Language(language),
                results["documents"][language],
                size,
                Bars(
                    tuple(
                        Bar(value, most, colour, bounds)
                        for (value, bounds), colour in zip(pairs, "br", strict=True)
                    )
                ),
                *(Number(value, ".3f", bounds) for value, bounds in pairs),
                Number(difference["bits_per_byte"], "+.3f", difference["interval"]),
                Number(relative, "+.1%", verdict=_verdict(relative, difference["interval"])),
                " → ".join(f"{results[model]['tokens'][language]:,}" for model in _MODELS),
            ]
        )
    columns = [
        *text_columns("language"),
        "documents",
        "bytes",
        bars_column("bits per byte"),
        *_MODELS,
        "difference",
        "change",
        Column("tokens", hint="of the same text, base → result", on_page_only=True),
    ]
    return Table("Bits per byte of base and result on held-out text", columns, rows)


def _verdict(relative: float, interval: Sequence[float] | None) -> str | None:
    """Colour of a change: none when its interval holds zero, or when it is tiny and has no interval."""
    certain = abs(relative) >= _MARKED_CHANGE if interval is None else interval[0] * interval[1] > 0
    if not certain:
        return None
    return "better" if relative < 0 else "worse"


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
