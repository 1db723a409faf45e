"""``results.json`` as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines.extend("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join(lines)


def with_interval(value: float, interval: Sequence[float] | None, form: str = ".3f") -> str:
    """A number with its confidence interval behind it."""
    shown = format(value, form)
    return (
        shown if interval is None else f"{shown} [{format(interval[0], form)}, {format(interval[1], form)}]"
    )


def markdown(results: Mapping[str, Any], title: str) -> str:
    """The results as a Markdown page."""
    protocol = results["protocol"]
    base, result = results["base"], results["result"]
    rows = []
    for language, size in results["bytes"].items():
        difference = results["difference"][language]
        change = difference["bits_per_byte"] / base["bits_per_byte"][language]
        rows.append(
            [
                language,
                f"{results['documents'][language]:,}",
                f"{size:,}",
                with_interval(base["bits_per_byte"][language], base["bits_per_byte_interval"][language]),
                with_interval(result["bits_per_byte"][language], result["bits_per_byte_interval"][language]),
                with_interval(difference["bits_per_byte"], difference["interval"], "+.3f"),
                f"{change:+.1%}",
            ]
        )
    parts = [
        f"# {title}: base against result",
        f"Bits per byte on held-out text with {protocol['confidence']:.0%} confidence intervals "
        f"({protocol['interval']}); lower is better.",
        table(["language", "documents", "bytes", "base", "result", "difference", "change"], rows),
        "Perplexity counts tokens of a model's own vocabulary, so the first two columns cannot be compared "
        "with each other; the last two are both per token of the base's vocabulary.",
        table(
            ["language", "base, own tokens", "result, own tokens", "base", "result, per base token"],
            [
                [
                    language,
                    f"{base['perplexity'][language]:,.2f}",
                    f"{result['perplexity'][language]:,.2f}",
                    f"{base['perplexity_per_base_token'][language]:,.2f}",
                    f"{result['perplexity_per_base_token'][language]:,.2f}",
                ]
                for language in results["bytes"]
            ],
        ),
    ]
    if results["perplexity_sets"]:
        parts.append("Perplexity over several languages together (own tokens):")
        parts.append(
            table(
                ["set", "documents", "base", "result", "base, bits per byte", "result, bits per byte"],
                [
                    [
                        f"{name} ({'+'.join(entry['languages'])})",
                        f"{entry['documents']:,}",
                        f"{entry['base']['perplexity']:,.2f}",
                        f"{entry['result']['perplexity']:,.2f}",
                        *(
                            "–" if (bits := entry[model]["bits_per_byte"]) is None else f"{bits:.3f}"
                            for model in ("base", "result")
                        ),
                    ]
                    for name, entry in results["perplexity_sets"].items()
                ],
            )
        )
    benchmarks = results["benchmarks"]
    if benchmarks["base"]:
        parts.append(f"Benchmarks ({protocol['benchmarks']}):")
        parts.append(
            table(
                ["benchmark", "metric", "examples", "questions", "base", "result"],
                [
                    [
                        key,
                        entry["metric"],
                        str(entry["fewshot"]),
                        f"{entry['questions']:,}",
                        *(
                            with_interval(
                                benchmarks[name][key]["value"], benchmarks[name][key]["interval"], ".4f"
                            )
                            for name in ("base", "result")
                        ),
                    ]
                    for key, entry in benchmarks["base"].items()
                ],
            )
        )
    for name in ("base", "result"):
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
