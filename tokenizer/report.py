"""The efficiency report: any tokenizers over any texts, and the page of the vocabulary stage."""

from __future__ import annotations

import html as escape
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.progress import Progress
from tsugiki.tokenizer.gates import Gate
from tsugiki.tokenizer.learning.cost import MISTRAL_7B, ModelShape, relative_cost, shape_of
from tsugiki.tokenizer.measure import html, plots
from tsugiki.tokenizer.measure.efficiency import AnyTokenizer, Measured, measure, read_lines, sample_words

_RARE = 10
_SHOWN_PIECES = 60


def run_report(
    tokenizers: Mapping[str, Path],
    texts: Mapping[str, Sequence[Path]],
    output_dir: Path,
    *,
    parallel: Mapping[str, Path] | None = None,
    model: Path | None = None,
    limit_bytes: int | None = None,
    title: str = "Tokenizer efficiency",
) -> dict[str, Any]:
    """Measure tokenizers on texts; write ``report.json``, ``.csv``, ``.md``, ``.html`` and figures.

    Args:
        tokenizers: name -> Hugging Face directory, ``tokenizer.json`` or SentencePiece ``.model``; the
            first is what the others are compared with.
        texts: language -> UTF-8 text, ``.jsonl`` or ``.jsonl.zst`` files.
        output_dir: made if needed.
        parallel: language -> file whose lines are aligned with those of ``en``, for parity.
        model: Hugging Face ``config.json`` (or its directory) of the model whose cost is predicted; by
            default that of the first tokenizer's directory, or Mistral-7B's shape.
        limit_bytes: most bytes of each text.
        title: of the page.

    Returns:
        The content of ``report.json``.

    Raises:
        ConfigError: nothing to measure, or parallel files that are not aligned.
        DataError: a tokenizer or text that cannot be read.
    """
    if not tokenizers or not texts:
        raise ConfigError(
            "nothing to measure",
            got=f"{len(tokenizers)} tokenizers, {len(texts)} texts",
            fix="give at least one --tokenizer NAME=PATH and one --text LANG=FILE",
        )
    loaded = [AnyTokenizer(name, path) for name, path in tokenizers.items()]
    lines = {language: read_lines(paths, limit_bytes) for language, paths in texts.items()}
    aligned = _aligned(parallel or {})
    shape = _model_shape(model, loaded[0])
    return write_report(loaded, lines, aligned, shape, output_dir, title)


def _aligned(parallel: Mapping[str, Path]) -> dict[str, list[str]]:
    if not parallel:
        return {}
    if "en" not in parallel:
        raise ConfigError(
            "parity needs the English side", got=", ".join(parallel), fix="add --parallel en=FILE"
        )
    lines = {language: path.read_text(encoding="utf-8").splitlines() for language, path in parallel.items()}
    for language, found in lines.items():
        if len(found) != len(lines["en"]):
            raise ConfigError(
                "parallel files must have the same number of lines",
                where=parallel[language],
                got=f"{len(found)} lines",
                expected=f"{len(lines['en'])} as in {parallel['en']}",
            )
    return lines


def _model_shape(model: Path | None, first: AnyTokenizer) -> ModelShape:
    config = first.config
    if model is not None:
        file = model / "config.json" if model.is_dir() else model
        if not file.is_file():
            raise ConfigError(
                "no model configuration here", where=file, expected="a Hugging Face config.json"
            )
        config = json.loads(file.read_text(encoding="utf-8"))
    return shape_of(config) if config and "hidden_size" in config else MISTRAL_7B


def measure_all(
    tokenizers: Sequence[AnyTokenizer],
    texts: Mapping[str, Sequence[str]],
    parallel: Mapping[str, Sequence[str]],
    shape: ModelShape,
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, Measured]]]:
    """Metrics by tokenizer and language, and what the plots need besides."""
    metrics: dict[str, dict[str, dict[str, float]]] = {item.name: {} for item in tokenizers}
    raw: dict[str, dict[str, Measured]] = {item.name: {} for item in tokenizers}
    size = sum(len(line.encode()) for lines in texts.values() for line in lines) * len(tokenizers)
    words = {language: sample_words(lines, language) for language, lines in texts.items()}
    with Progress("measure tokenizers", size / 1e6, "MB") as progress:
        for tokenizer in tokenizers:
            english = _total(tokenizer, parallel["en"]) if parallel else 0
            for language, lines in texts.items():
                found = measure(tokenizer, lines, language, words[language])
                row = found.metrics
                reference = metrics[tokenizers[0].name].get(language, row)
                row["relative_to_reference"] = row["tokens"] / reference["tokens"]
                row["context_characters"] = shape.context_tokens * row["characters_per_token"]
                row["relative_cost"] = relative_cost(
                    shape, row["tokens"], tokenizer.size, reference["tokens"], tokenizers[0].size
                )
                if language in parallel and english:
                    row["parity"] = _total(tokenizer, parallel[language]) / english
                metrics[tokenizer.name][language] = row
                raw[tokenizer.name][language] = found
                progress.advance(row["bytes"] / 1e6)
    return metrics, raw


def _total(tokenizer: AnyTokenizer, lines: Sequence[str]) -> int:
    return len(tokenizer.ids(lines)[0])


def added_usage(
    reference: AnyTokenizer, tokenizer: AnyTokenizer, raw: Mapping[str, Measured]
) -> dict[str, Any] | None:
    """How rows beyond the reference are used; None unless the tokenizer extends the reference."""
    if tokenizer.size <= reference.size or tokenizer.surfaces[: reference.size] != reference.surfaces:
        return None
    usage = sum((found.usage for found in raw.values()), np.zeros(tokenizer.size, dtype=np.int64))[
        reference.size :
    ]
    real = [
        offset
        for offset in range(len(usage))
        if not tokenizer.surfaces[reference.size + offset].startswith("<reserved_")
    ]
    counts = usage[real]
    texts = [tokenizer.text_of(reference.size + offset) for offset in real]
    longest = sorted(range(len(real)), key=lambda at: (-len(texts[at]), texts[at]))[:_SHOWN_PIECES]
    frequent = sorted(range(len(real)), key=lambda at: (-counts[at], texts[at]))[:_SHOWN_PIECES]
    return {
        "added": len(real),
        "reserved": len(usage) - len(real),
        "unused": int((counts == 0).sum()),
        "rare": int(((counts > 0) & (counts < _RARE)).sum()),
        "rare_below": _RARE,
        "unused_examples": [texts[at] for at in np.flatnonzero(counts == 0)[:_SHOWN_PIECES]],
        "longest": [texts[at] for at in longest],
        "most_frequent": [texts[at] for at in frequent],
        "counts": counts.tolist(),
    }


def write_report(
    tokenizers: Sequence[AnyTokenizer],
    texts: Mapping[str, Sequence[str]],
    parallel: Mapping[str, Sequence[str]],
    shape: ModelShape,
    output_dir: Path,
    title: str,
    extra: Mapping[str, Any] | None = None,
    lead: Sequence[html.Section] = (),
) -> dict[str, Any]:
    """Measure and write all forms of the report; ``extra`` goes into report.json, ``lead`` on top."""
    metrics, raw = measure_all(tokenizers, texts, parallel, shape)
    output_dir.mkdir(parents=True, exist_ok=True)
    usage = {item.name: added_usage(tokenizers[0], item, raw[item.name]) for item in tokenizers[1:]}
    figures = _figures(metrics, raw, usage, output_dir)
    words = {language: found.words for language, found in raw[tokenizers[0].name].items()}
    document: dict[str, Any] = {
        **(extra or {}),
        "tokenizers": metrics,
        "vocabulary_sizes": {item.name: item.size for item in tokenizers},
        "added_pieces": {
            name: {key: value for key, value in found.items() if key != "counts"}
            for name, found in usage.items()
            if found is not None
        },
        "word_segmenters": words,
        "model": {
            "hidden_size": shape.hidden_size,
            "body_parameters": shape.body_parameters,
            "context_tokens": shape.context_tokens,
        },
    }
    header, rows = html.metric_rows(metrics)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (output_dir / "report.json").write_text(text + "\n", encoding="utf-8")
    (output_dir / "report.csv").write_text(html.as_csv(metrics), encoding="utf-8")
    (output_dir / "report.md").write_text(html.as_markdown(title, header, rows), encoding="utf-8")
    sections = [*lead, *_sections(tokenizers, header, rows, usage, figures, words, shape)]
    subtitle = ", ".join(f"{item.name}: {item.size:,} rows" for item in tokenizers)
    (output_dir / "report.html").write_text(html.page(title, subtitle, sections), encoding="utf-8")
    return document


def _figures(
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
    raw: Mapping[str, Mapping[str, Measured]],
    usage: Mapping[str, Mapping[str, Any] | None],
    output_dir: Path,
) -> dict[str, tuple[Path, str]]:
    def values(key: str) -> dict[str, dict[str, float]]:
        return {
            name: {language: found[key] for language, found in row.items() if key in found}
            for name, row in metrics.items()
        }

    languages = list(next(iter(raw.values())))
    lines = {
        language: {name: row[language].tokens_per_line for name, row in raw.items()} for language in languages
    }
    figures = {
        "tokens": (
            plots.bars(values("tokens_per_character"), "tokens per character", output_dir / "tokens.png"),
            "Tokens per character; lower is better.",
        ),
        "fertility": (
            plots.bars(values("fertility"), "tokens per word", output_dir / "fertility.png"),
            "Fertility: tokens per word; 1 would be a token for every word.",
        ),
        "ecdf": (
            plots.ecdf(lines, output_dir / "ecdf.png"),
            "Share of lines that need at most so many tokens (98 % of lines shown); further left is better.",
        ),
    }
    for name, found in usage.items():
        if found is not None and found["added"]:
            safe = "".join(c if c.isalnum() else "_" for c in name)
            figures[f"ranks {name}"] = (
                plots.ranks(np.array(found["counts"]), output_dir / f"ranks-{safe}.png"),
                f"Occurrences of the pieces that {name} adds, by rank.",
            )
    return figures


def _sections(
    tokenizers: Sequence[AnyTokenizer],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    usage: Mapping[str, Mapping[str, Any] | None],
    figures: Mapping[str, tuple[Path, str]],
    words: Mapping[str, str],
    shape: ModelShape,
) -> list[html.Section]:
    segmenters = "; ".join(f"{language}: {name}" for language, name in words.items())
    first = tokenizers[0].name
    sections = [
        html.Section("Compression", "", (figures["tokens"],)),
        html.Section(
            "All measures",
            html.table(header, rows)
            + html.metric_legend()
            + f"<p>Relative to {escape.escape(first)}. Words by {escape.escape(segmenters)}. "
            f"Cost and context for a model of {shape.body_parameters / 1e9:.2f}B parameters besides the "
            f"vocabulary, {shape.hidden_size} wide, with a context of {shape.context_tokens:,} tokens.</p>",
        ),
        html.Section("Words and lines", "", (figures["fertility"], figures["ecdf"])),
    ]
    for name, found in usage.items():
        if found is None:
            continue
        body = html.cards(
            {
                "pieces added": f"{found['added']:,}",
                "reserved rows": f"{found['reserved']:,}",
                "not in these texts": f"{found['unused']:,}",
                f"fewer than {found['rare_below']} times": f"{found['rare']:,}",
            }
        )
        body += "<p>Most frequent</p>" + html.pieces_list(found["most_frequent"])
        body += "<p>Longest</p>" + html.pieces_list(found["longest"])
        if found["unused_examples"]:
            body += "<p>Not in these texts</p>" + html.pieces_list(found["unused_examples"])
        figure = figures.get(f"ranks {name}")
        sections.append(html.Section(f"Added pieces of {name}", body, (figure,) if figure else ()))
    return sections


def gates_section(gates: Sequence[Gate]) -> html.Section:
    """The gates as a table; a waived failure is red."""
    rows, classes = [], []
    for item in gates:
        state = "passed" if item.passed else "FAILED, waived"
        rows.append([item.name, state, f"{item.checked:,}", f"{item.failures:,}", item.note])
        classes.append("" if item.passed else "bad")
    body = html.table(["gate", "result", "checked", "failed", "note"], rows, classes)
    for item in gates:
        if item.examples:
            examples = "".join(f"<li><code>{escape.escape(text)}</code></li>" for text in item.examples)
            body += f'<p class="bad">{escape.escape(item.name)}</p><ul>{examples}</ul>'
    return html.Section("Gates", body)


def stage_report(
    base: AnyTokenizer,
    extended: AnyTokenizer,
    texts: Mapping[str, Sequence[str]],
    output_dir: Path,
    *,
    gates: Sequence[Gate],
    facts: Mapping[str, Any],
    curve: tuple[Sequence[int], Mapping[str, Sequence[float]]] | None = None,
    title: str = "Vocabulary extension",
) -> dict[str, Any]:
    """The report of the vocabulary stage: gates and learning on top of the efficiency report.

    Args:
        base: the base tokenizer.
        extended: the merged one.
        texts: held-out lines by language.
        output_dir: where the reports go.
        gates: outcomes.
        facts: numbers about the extension, kept in ``report.json``.
        curve: added pieces, and tokens relative to the base at each of them by language.
        title: of the page.
    """
    shape = _model_shape(None, base)
    lead = [html.Section("", html.cards({key: str(value) for key, value in facts["headline"].items()}))]
    if by_language := facts.get("pieces_by_language"):
        lists = facts.get("word_lists", {})
        rows = [[key, f"{count:,}", lists.get(key, "none")] for key, count in by_language.items()]
        lead.append(html.Section("Languages", html.table(["language", "pieces", "word list"], rows)))
    if curve is not None:
        sizes, ratios = curve
        figure = plots.curve(sizes, ratios, output_dir / "curve.png", facts.get("pieces"))
        caption = "Tokens of held-out text relative to the base, by number of added pieces (in merge order)."
        lead.append(html.Section("Compression against size", "", ((figure, caption),)))
    lead.append(gates_section(gates))
    extra = {
        **facts,
        "gates": [item.as_dict() for item in gates],
        "curve": None if curve is None else {"pieces": list(curve[0]), "tokens_relative_to_base": curve[1]},
    }
    document = write_report([base, extended], texts, {}, shape, output_dir, title, extra, lead)
    document["tokens_relative_to_base"] = {
        language: row["relative_to_reference"]
        for language, row in document["tokenizers"][extended.name].items()
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (output_dir / "report.json").write_text(text + "\n", encoding="utf-8")
    return document
