"""The efficiency report: any tokenizers over any texts, and the page of the vocabulary stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.family import family_names
from tsugiki.experiment.pages.page import Page, Section, render
from tsugiki.experiment.pages.tables import Language, Table, text_columns
from tsugiki.experiment.progress import Progress
from tsugiki.experiment.run.folders import refuse_stage_folder
from tsugiki.tokenizer.gates.gate import Gate
from tsugiki.tokenizer.learning.cost import MISTRAL_7B, ModelShape, relative_cost, shape_of
from tsugiki.tokenizer.measure.efficiency import AnyTokenizer, Measured, measure, read_lines, sample_words
from tsugiki.tokenizer.measure.page import (
    TEMPLATE,
    as_csv,
    gates_section,
    measures_sections,
    metrics_table,
    size_curve,
)

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
    """Measure tokenizers on texts; write ``report.json``, ``.csv``, ``.md``, and ``.html``.

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
        ConfigError: nothing to measure, parallel files that are not aligned, or ``output_dir`` is a stage's.
        DataError: a tokenizer or text that cannot be read.
    """
    if not tokenizers or not texts:
        raise ConfigError(
            "nothing to measure",
            got=f"{len(tokenizers)} tokenizers, {len(texts)} texts",
            fix="give at least one --tokenizer NAME=PATH and one --text LANG=FILE",
        )
    refuse_stage_folder(output_dir, "the folder of the report")
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
    """Shape of the model that was named; else of the first tokenizer's, or Mistral-7B's where that is not known."""
    if model is not None:
        file = model / "config.json" if model.is_dir() else model
        if not file.is_file():
            raise ConfigError(
                "no model configuration here", where=file, expected="a Hugging Face config.json"
            )
        return shape_of(json.loads(file.read_text(encoding="utf-8")), file)
    config = first.config or {}
    # Tokenizers of any model may be compared, so an unknown family is no mistake here.
    known = "hidden_size" in config and str(config.get("model_type")).lower() in family_names()
    return shape_of(config, f"config.json of {first.name}") if known else MISTRAL_7B


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
    lead: Sequence[Section] = (),
    cards: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Measure and write all forms of the report; ``extra`` goes into report.json, ``lead`` on top."""
    metrics, raw = measure_all(tokenizers, texts, parallel, shape)
    output_dir.mkdir(parents=True, exist_ok=True)
    usage = {item.name: added_usage(tokenizers[0], item, raw[item.name]) for item in tokenizers[1:]}
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
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (output_dir / "report.json").write_text(text + "\n", encoding="utf-8")
    (output_dir / "report.csv").write_text(as_csv(metrics), encoding="utf-8")
    markdown = f"# {title}\n\n{metrics_table(metrics).markdown()}\n"
    (output_dir / "report.md").write_text(markdown, encoding="utf-8")
    lines = {
        language: {name: row[language].tokens_per_line for name, row in raw.items()} for language in texts
    }
    page = Page(
        title,
        ", ".join(f"{item.name}: {item.size:,} rows" for item in tokenizers),
        [*lead, *measures_sections(metrics, lines, words, shape, usage)],
        cards,
    )
    (output_dir / "report.html").write_bytes(render(page, TEMPLATE))
    return document


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
    lead = []
    if by_language := facts.get("pieces_by_language"):
        lists = facts.get("word_lists", {})
        rows = [[Language(key), count, lists.get(key, "none")] for key, count in by_language.items()]
        columns = [*text_columns("language"), "pieces", *text_columns("word list")]
        lead.append(Section("languages", "Languages", Table("Pieces by language", columns, rows)))
    if curve is not None:
        sizes, ratios = curve
        lead.append(
            Section("curve", "Compression against size", size_curve(sizes, ratios, facts.get("pieces")))
        )
    lead.append(gates_section(gates))
    extra = {
        **facts,
        "gates": [item.as_dict() for item in gates],
        "curve": None if curve is None else {"pieces": list(curve[0]), "tokens_relative_to_base": curve[1]},
    }
    cards = [(str(value), key) for key, value in facts["headline"].items()]
    document = write_report([base, extended], texts, {}, shape, output_dir, title, extra, lead, cards)
    document["tokens_relative_to_base"] = {
        language: row["relative_to_reference"]
        for language, row in document["tokenizers"][extended.name].items()
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (output_dir / "report.json").write_text(text + "\n", encoding="utf-8")
    return document
