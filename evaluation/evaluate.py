"""The evaluate stage: base against result on held-out text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.evaluation.benchmarks.harness import check, check_chat_template, evaluate_benchmarks
from tsugiki.evaluation.config import EvaluateConfig
from tsugiki.evaluation.pages.results import markdown
from tsugiki.evaluation.scoring.bits_per_byte import Score, bits_per_byte, perplexity, score_documents
from tsugiki.evaluation.scoring.heldout import Document, heldout_documents, measured_languages
from tsugiki.evaluation.scoring.intervals import Interval, Resampler
from tsugiki.evaluation.scoring.language_model import LanguageModel, common_window, load_language_model
from tsugiki.evaluation.scoring.samples import choose_prompts, continue_greedily
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.progress import Progress
from tsugiki.experiment.run.stage import StageContext, StageResult

MODELS = ("base", "result")
_CHATTING: dict[str, tuple[str, ...]] = {"none": (), "result": ("result",), "both": MODELS}
"""Models whose benchmarks are asked in their chat template."""
RESULTS_NAME = "results.json"
SAMPLES_NAME = "samples.jsonl"
DOCUMENTS_NAME = "documents.jsonl"
MARKDOWN_NAME = "results.md"


@dataclass(frozen=True)
class _Measured:
    """What one model gave."""

    scores: dict[str, list[Score]]
    perplexity_sets: dict[str, list[Score]]
    continuations: list[str]
    benchmarks: dict[str, dict[str, Any]]


def run(
    config: EvaluateConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Measure the base and the exported model on the corpus' held-out documents.

    Writes ``results.json``, ``results.md``, ``samples.jsonl`` and ``documents.jsonl`` (the scores of each
    document, from which runs are compared pairwise).

    Args:
        config: the evaluate section.
        inputs: ``base`` and ``export`` (Hugging Face directories), ``corpus``.
        output_dir: where to write.
        context: seed and tracker.

    Raises:
        ConfigError: a language without held-out documents, a window no model can read.
        DataError: no held-out documents at all.
        CheckpointError: a model that cannot be loaded or gives no finite loss.
    """
    corpus_dir = inputs["corpus"]
    index = CorpusIndex.load(corpus_dir)
    documents = {
        language: heldout_documents(
            index, corpus_dir, language, maximum_bytes=config.maximum_bytes_per_language
        )
        for language in measured_languages(index, config.languages)
    }
    set_documents = {
        name: _set_documents(index, corpus_dir, entry.languages, entry.documents_per_language)
        for name, entry in config.perplexity_sets.items()
    }
    prompts = choose_prompts(config.prompts, documents, config.samples)

    directories = {"base": inputs["base"], "result": inputs["export"]}
    window = common_window(list(directories.values()), config.sequence_length)
    stride = config.stride or window // 2
    if stride >= window:
        raise ConfigError(
            "windows would not overlap",
            where="evaluate.stride",
            got=stride,
            expected=f"less than the window of {window} tokens",
        )
    asked = [] if config.harness is None else check(config.harness)
    chatting = _CHATTING["none" if config.harness is None else config.harness.chat_template]
    for name in chatting:
        check_chat_template(directories[name])
    measured: dict[str, _Measured] = {}
    for name in MODELS:
        model = load_language_model(directories[name], dtype=config.dtype, device=config.device)
        plain = [items for key, items in set_documents.items() if not config.perplexity_sets[key].given]
        scores = _score(model, name, [*documents.values(), *plain], window, stride, config, context.workers)
        set_scores: dict[str, list[Score]] = {}
        for key, items in set_documents.items():
            given = config.perplexity_sets[key].given
            label = f"{name} ({key})"
            found = (
                _score(model, label, [items], window, stride, config, context.workers, given)
                if given
                else scores
            )
            set_scores[key] = [found[item] for item in items]
        continuations = continue_greedily(model, [prompt.text for prompt in prompts], config.samples)
        del model  # one model in memory at a time
        measured[name] = _Measured(
            scores={language: [scores[item] for item in items] for language, items in documents.items()},
            perplexity_sets=set_scores,
            continuations=continuations,
            benchmarks={}
            if config.harness is None
            else evaluate_benchmarks(
                directories[name],
                asked,
                config.harness,
                dtype=config.dtype,
                device=config.device,
                seed=context.seed,
                chat=name in chatting,
            ),
        )

    results = _results(config, context.seed, window, stride, documents, measured)
    samples = [
        {**prompt.as_record(), **{name: measured[name].continuations[position] for name in MODELS}}
        for position, prompt in enumerate(prompts)
    ]
    (output_dir / RESULTS_NAME).write_text(
        json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    _write_lines(output_dir / SAMPLES_NAME, samples)
    _write_lines(output_dir / DOCUMENTS_NAME, _document_records(documents, measured))
    (output_dir / MARKDOWN_NAME).write_text(markdown(results, context.experiment_name), encoding="utf-8")
    return StageResult(
        counts={
            "documents": {language: len(items) for language, items in documents.items()},
            "bytes": results["bytes"],
            "samples": len(samples),
        },
        metrics=_metrics(results),
        artifacts=(RESULTS_NAME, MARKDOWN_NAME, SAMPLES_NAME),
        summary=_summary(results),
    )


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in MODELS:
        for language, value in results[name]["bits_per_byte"].items():
            metrics[f"{name}/bits_per_byte/{language}"] = value
        for key, outcome in results["benchmarks"][name].items():
            metrics[f"{name}/benchmark/{_metric_name(key)}"] = outcome["value"]
    return metrics


def _metric_name(key: str) -> str:
    """A key with only what MLflow allows in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9_.\- /]", "_", key)


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def _document_records(
    documents: Mapping[str, Sequence[Document]], measured: Mapping[str, _Measured]
) -> Iterator[dict[str, Any]]:
    for language, items in documents.items():
        for position, document in enumerate(items):
            record: dict[str, Any] = {
                "language": language,
                "id": document.identifier,
                "bytes": document.bytes,
            }
            for name in MODELS:
                score = measured[name].scores[language][position]
                record[name] = {"nats": score.nats, "tokens": score.tokens}
            yield record


def _set_documents(
    index: CorpusIndex, corpus_dir: Path, languages: Sequence[str], per_language: int
) -> list[Document]:
    return [
        document
        for language in measured_languages(index, languages)
        for document in heldout_documents(index, corpus_dir, language, maximum_documents=per_language)
    ]


def _score(
    model: LanguageModel,
    name: str,
    groups: Iterable[Sequence[Document]],
    window: int,
    stride: int,
    config: EvaluateConfig,
    workers: int,
    given: float = 0.0,
) -> dict[Document, Score]:
    """Scores of all documents, those of several groups once; together, because long batches are faster."""
    documents = list(dict.fromkeys(document for group in groups for document in group))
    total = sum(document.bytes for document in documents)
    with Progress(f"evaluate {name}", total, "bytes") as progress:
        scores = score_documents(
            model,
            documents,
            window=window,
            stride=stride,
            given=given,
            batch_bytes=config.batch_bytes,
            workers=workers,
            advance=progress.advance,
            expect=progress.expect,
        )
    return dict(zip(documents, scores, strict=True))


def _results(
    config: EvaluateConfig,
    seed: int,
    window: int,
    stride: int,
    documents: Mapping[str, Sequence[Document]],
    measured: Mapping[str, _Measured],
) -> dict[str, Any]:
    """Contents of ``results.json``."""
    resamplers = {
        language: Resampler(len(items), config.bootstrap_resamples, config.confidence, seed, language)
        for language, items in documents.items()
    }
    results: dict[str, Any] = {
        "schema_version": 1,
        "protocol": {
            "text": "held-out documents of the corpus, the same for both models",
            "tokens": "[BOS] and the document's tokens in the model's own vocabulary; every token of the "
            "text is scored once, the end of the document is not",
            "window_tokens": window,
            "stride_tokens": stride,
            "bits_per_byte": "sum of nats / ln 2 / UTF-8 bytes",
            "perplexity": "exp(sum of nats / tokens of the model's own vocabulary)",
            "perplexity_per_base_token": "exp(sum of nats / tokens of the base's vocabulary)",
            "interval": "percentile bootstrap over documents",
            "bootstrap_resamples": config.bootstrap_resamples,
            "confidence": config.confidence,
            "dtype": config.dtype,
            "benchmarks": "lm-evaluation-harness; 95% intervals: Wilson for shares of right answers, "
            "else from its standard errors",
        },
        "documents": {language: len(items) for language, items in documents.items()},
        "bytes": {language: sum(item.bytes for item in items) for language, items in documents.items()},
        "text_sha256": {language: _digest(items) for language, items in documents.items()},
    }
    base_scores = measured["base"].scores
    for name in MODELS:
        scores = measured[name].scores
        results[name] = {
            "bits_per_byte": {language: bits_per_byte(items) for language, items in scores.items()},
            "bits_per_byte_interval": {
                language: resamplers[language].bits_per_byte(items) for language, items in scores.items()
            },
            "perplexity": {language: perplexity(items) for language, items in scores.items()},
            "perplexity_per_base_token": {
                language: perplexity(_with_tokens_of(items, base_scores[language]))
                for language, items in scores.items()
            },
            "nats": {language: sum(item.nats for item in items) for language, items in scores.items()},
            "tokens": {language: sum(item.tokens for item in items) for language, items in scores.items()},
            "unknown_tokens": {
                language: sum(item.unknown_tokens for item in items) for language, items in scores.items()
            },
        }
    results["difference"] = {
        language: {
            "bits_per_byte": results["result"]["bits_per_byte"][language]
            - results["base"]["bits_per_byte"][language],
            "interval": resamplers[language].difference(
                base_scores[language], measured["result"].scores[language]
            ),
        }
        for language in documents
    }
    results["perplexity_sets"] = {
        name: {
            "languages": entry.languages,
            "documents": len(measured["base"].perplexity_sets[name]),
            "given": entry.given,
            **{
                model: {
                    "perplexity": perplexity(measured[model].perplexity_sets[name]),
                    "bits_per_byte": None
                    if entry.given
                    else bits_per_byte(measured[model].perplexity_sets[name]),
                    "tokens": sum(item.tokens for item in measured[model].perplexity_sets[name]),
                }
                for model in MODELS
            },
        }
        for name, entry in config.perplexity_sets.items()
    }
    results["benchmarks"] = {name: measured[name].benchmarks for name in MODELS}
    return results


def _digest(documents: Sequence[Document]) -> str:
    """Tells whether two runs were measured on the same text."""
    total = hashlib.sha256()
    for document in documents:
        total.update(hashlib.sha256(document.text.encode()).digest())
    return total.hexdigest()


def _with_tokens_of(scores: Sequence[Score], other: Sequence[Score]) -> list[Score]:
    return [
        Score(score.nats, reference.tokens, score.bytes, score.unknown_tokens)
        for score, reference in zip(scores, other, strict=True)
    ]


def _summary(results: Mapping[str, Any]) -> tuple[str, ...]:
    lines = ["bits per byte on held-out text, base -> result:"]
    for language, difference in results["difference"].items():
        before = results["base"]["bits_per_byte"][language]
        after = results["result"]["bits_per_byte"][language]
        interval: Interval | None = difference["interval"]
        spread = "" if interval is None else f"  [{interval[0]:+.3f}, {interval[1]:+.3f}]"
        lines.append(
            f"  {language:<6} {before:.3f} -> {after:.3f}  {difference['bits_per_byte']:+.3f}{spread}"
        )
    return tuple(lines)
