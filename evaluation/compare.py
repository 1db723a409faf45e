"""Runs against each other: what the same text costs them, by tokens, bytes and FLOPs of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.artefacts import Artefacts, run_directories
from evaluation.compare_page import comparison_page
from evaluation.intervals import Resampler
from evaluation.results import table, with_interval
from evaluation.scoring import Score
from experiment.errors import ConfigError, DataError

PAGE_NAME = "index.html"
JSON_NAME = "comparison.json"
MARKDOWN_NAME = "comparison.md"


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        values: contents of ``comparison.json``.
        summary: lines for the console.
        files: the files written.
    """

    values: dict[str, Any]
    summary: tuple[str, ...]
    files: tuple[Path, ...]


def compare(
    run_dirs: Sequence[Path],
    output: Path,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 1234,
) -> Comparison:
    """Compare runs; differences are to the first one.

    Writes ``index.html``, ``comparison.json`` and ``comparison.md`` into ``output``, which is made when it is
    not there. Differences with intervals are given for languages in which the runs were measured on the very
    same text; whether they were is told by the hash of that text.

    Args:
        run_dirs: run directories, two or more.
        output: directory to write.
        resamples: resamples of the documents for the confidence intervals.
        confidence: coverage of the intervals.
        seed: seed of the resampling.

    Raises:
        ConfigError: fewer than two runs, or a directory that is not a run.
        DataError: a run was neither trained nor evaluated, or an artefact cannot be read.
    """
    if len(run_dirs) < 2:
        raise ConfigError(
            "nothing to compare", got=f"{len(run_dirs)} run", expected="two run directories or more"
        )
    runs: dict[str, Artefacts] = {}
    for name, run_dir in zip(_names(run_dirs), run_dirs, strict=True):
        if not run_dir.is_dir():
            raise ConfigError("no such run directory", where=run_dir)
        artefacts = Artefacts.load(run_directories(run_dir))
        if artefacts.results is None and not artefacts.metrics:
            raise DataError(
                "nothing to compare in a run",
                where=run_dir,
                expected="train/metrics.jsonl or evaluate/results.json",
                fix="run it as far as `train` first",
            )
        runs[name] = artefacts
    values = _values(runs, resamples, confidence, seed)
    output.mkdir(parents=True, exist_ok=True)
    contents = {
        PAGE_NAME: comparison_page(values),
        JSON_NAME: json.dumps(values, indent=2, ensure_ascii=False) + "\n",
        MARKDOWN_NAME: _markdown(values),
    }
    for name, content in contents.items():
        (output / name).write_text(content, encoding="utf-8")
    return Comparison(values, _summary(values), tuple(output / name for name in contents))


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """Directory names, with the parent's where they are not unique."""
    short = [path.resolve().name for path in run_dirs]
    if len(set(short)) == len(short):
        return short
    longer = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in run_dirs]
    if len(set(longer)) < len(longer):
        raise ConfigError("the same run twice", got=", ".join(str(path) for path in run_dirs))
    return longer


def _values(runs: Mapping[str, Artefacts], resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    languages = list(
        dict.fromkeys(language for artefacts in runs.values() for language in _languages(artefacts))
    )
    first = next(iter(runs))
    values: dict[str, Any] = {
        "schema_version": 1,
        "reference": first,
        "confidence": confidence,
        "runs": {name: _facts(artefacts) for name, artefacts in runs.items()},
        "languages": languages,
        "base": {},
        "result": {},
        "difference": {},
        "same_text": {},
        "tokens_per_byte": {},
        "benchmarks": _benchmarks(runs),
        "curves": {name: _curves(artefacts) for name, artefacts in runs.items()},
        "warnings": _warnings(runs),
    }
    for language in languages:
        values["same_text"][language] = _same_text(runs, language)
        for model in ("base", "result"):
            values[model][language] = {
                name: {
                    "bits_per_byte": artefacts.results[model]["bits_per_byte"][language],
                    "interval": artefacts.results[model]["bits_per_byte_interval"][language],
                }
                for name, artefacts in runs.items()
                if artefacts.results is not None and language in artefacts.results[model]["bits_per_byte"]
            }
        values["tokens_per_byte"][language] = {
            name: artefacts.results["result"]["tokens"][language] / artefacts.results["bytes"][language]
            for name, artefacts in runs.items()
            if artefacts.results is not None and language in artefacts.results["bytes"]
        }
        if values["same_text"][language]:
            scores = {name: _scores(artefacts, language) for name, artefacts in runs.items()}
            resampler = Resampler(len(scores[first]), resamples, confidence, seed, language)
            values["difference"][language] = {
                name: {
                    "bits_per_byte": values["result"][language][name]["bits_per_byte"]
                    - values["result"][language][first]["bits_per_byte"],
                    "interval": resampler.difference(scores[first], items)
                    if len(items) == len(scores[first])
                    else None,
                }
                for name, items in scores.items()
                if name != first
            }
    return values


def _languages(artefacts: Artefacts) -> list[str]:
    measured = [] if artefacts.results is None else list(artefacts.results["bytes"])
    return list(dict.fromkeys([*measured, *artefacts.validated_languages()]))


def _same_text(runs: Mapping[str, Artefacts], language: str) -> bool:
    digests = {
        None if artefacts.results is None else artefacts.results.get("text_sha256", {}).get(language)
        for artefacts in runs.values()
    }
    return len(digests) == 1 and None not in digests


def _scores(artefacts: Artefacts, language: str) -> list[Score]:
    return [
        Score(record["result"]["nats"], record["result"]["tokens"], record["bytes"], 0)
        for record in artefacts.documents
        if record["language"] == language
    ]


def _benchmarks(runs: Mapping[str, Artefacts]) -> dict[str, dict[str, Any]]:
    """Benchmarks of the results, by key and run."""
    found: dict[str, dict[str, Any]] = {}
    for name, artefacts in runs.items():
        for key, outcome in (artefacts.results or {}).get("benchmarks", {}).get("result", {}).items():
            found.setdefault(key, {})[name] = outcome
    return found


def _bytes_per_token(artefacts: Artefacts) -> float | None:
    """Bytes of text behind a token of the training mixture."""
    if artefacts.mixture is None:
        return None
    total = sum(
        source["share"] * source["bytes"] / source["tokens"]
        for source in artefacts.mixture["sources"]
        if source["tokens"]
    )
    return float(total) or None


def _flops_per_token(artefacts: Artefacts) -> float | None:
    """Forward and backward FLOPs per token, attention counted causal, as training logged them."""
    for line in reversed(artefacts.metrics):
        rate = line.get("throughput/tokens_per_second")
        work = line.get("throughput/tflops_causal_attention")
        if rate and work:
            return float(work) * 1e12 / float(rate)
    return None


def _facts(artefacts: Artefacts) -> dict[str, Any]:
    tokens = max((int(line.get("consumed_tokens", 0)) for line in artefacts.metrics), default=0) or None
    per_byte, per_flop = _bytes_per_token(artefacts), _flops_per_token(artefacts)
    speed = sorted(value for _, value in artefacts.series("throughput/tokens_per_second"))
    return {
        "vocabulary_size": (artefacts.mixture or {}).get("vocabulary_size"),
        "new_pieces": artefacts.added_rows,
        "trained_tokens": tokens,
        "trained_bytes": tokens * per_byte if tokens and per_byte else None,
        "trained_flops": tokens * per_flop if tokens and per_flop else None,
        "tokens_per_second": speed[len(speed) // 2] if speed else None,
    }


def _curves(artefacts: Artefacts) -> dict[str, list[dict[str, float | None]]]:
    per_byte, per_flop = _bytes_per_token(artefacts), _flops_per_token(artefacts)
    return {
        language: [
            {
                "tokens": tokens,
                "bytes": None if per_byte is None else tokens * per_byte,
                "flops": None if per_flop is None else tokens * per_flop,
                "bits_per_byte": value,
            }
            for tokens, value in artefacts.series(f"validation/bits_per_byte/{language}")
        ]
        for language in artefacts.validated_languages()
    }


def _warnings(runs: Mapping[str, Artefacts]) -> list[str]:
    """Why figures may not be comparable."""
    found: list[str] = []
    protocols = {
        (
            artefacts.results["protocol"]["window_tokens"],
            artefacts.results["protocol"]["stride_tokens"],
            artefacts.results["protocol"]["dtype"],
        )
        for artefacts in runs.values()
        if artefacts.results is not None
    }
    if len(protocols) > 1:
        found.append("The runs were evaluated with different windows or precision.")
    for name, artefacts in runs.items():
        if artefacts.results is None:
            found.append(f"{name} has not been evaluated.")
    bases = {
        json.dumps(artefacts.results["base"]["nats"], sort_keys=True)
        for artefacts in runs.values()
        if artefacts.results is not None
    }
    if len(bases) > 1:
        found.append("The runs do not start from the same base, or not on the same held-out text.")
    return found


def _summary(values: Mapping[str, Any]) -> tuple[str, ...]:
    names = list(values["runs"])
    lines = [f"bits per byte on held-out text: {', '.join(names)}"]
    for language in values["languages"]:
        shown = [
            f"{values['result'][language][name]['bits_per_byte']:.3f}"
            if name in values["result"][language]
            else "–"
            for name in names
        ]
        note = "" if values["same_text"][language] else "  (not the same text)"
        lines.append(f"  {language:<6} {'  '.join(shown)}{note}")
    return (*lines, *values["warnings"])


def _markdown(values: Mapping[str, Any]) -> str:
    names = list(values["runs"])
    rows = []
    for language in values["languages"]:
        cells = []
        for name in names:
            entry = values["result"][language].get(name)
            cells.append("–" if entry is None else with_interval(entry["bits_per_byte"], entry["interval"]))
        for name in names[1:]:
            entry = values["difference"].get(language, {}).get(name)
            cells.append(
                "–" if entry is None else with_interval(entry["bits_per_byte"], entry["interval"], "+.3f")
            )
        rows.append([language, *cells])
    facts = [
        [
            name,
            *(
                "–" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
                for value in entry.values()
            ),
        ]
        for name, entry in values["runs"].items()
    ]
    parts = [
        f"# {' against '.join(names)}",
        f"Bits per byte on held-out text, {values['confidence']:.0%} confidence intervals over documents; "
        f"lower is better. Differences are to {values['reference']}, on the same documents.",
        table(["language", *names, *(f"{name} − {names[0]}" for name in names[1:])], rows),
        table(["run", *(key.replace("_", " ") for key in values["runs"][names[0]])], facts),
        *values["warnings"],
    ]
    if values["benchmarks"]:
        rows = [
            [
                key,
                *(
                    with_interval(outcomes[name]["value"], outcomes[name]["interval"], ".4f")
                    if name in outcomes
                    else "–"
                    for name in names
                ),
            ]
            for key, outcomes in values["benchmarks"].items()
        ]
        parts.append(table(["benchmark", *names], rows))
    return "\n\n".join(parts) + "\n"
