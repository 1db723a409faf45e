"""Runs against each other: what the same text costs them, by tokens, bytes and FLOPs of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tsugiki.evaluation.pages.artefacts import Artefacts, run_directories
from tsugiki.evaluation.pages.compare import (
    TEMPLATE,
    benchmarks_table,
    comparison_page,
    quality_table,
    reached_table,
    runs_table,
    vocabulary_table,
)
from tsugiki.evaluation.pages.compute_matched import compute_matched, curves, facts
from tsugiki.evaluation.scoring.intervals import Resampler
from tsugiki.experiment.config.flat import flatten
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.pages.formats import short
from tsugiki.experiment.pages.page import render

PAGE_NAME = "index.html"
JSON_NAME = "comparison.json"
MARKDOWN_NAME = "comparison.md"
_NAMING = frozenset({"name", "run_dir", "tracking", "workers", "report"})
"""Sections of a configuration that change nothing that is compared."""
_COSTS = {"bytes": "bytes of text", "tokens": "tokens", "flops": "FLOPs"}


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
    settings = {name: _settings(run_dir) for name, run_dir in zip(runs, run_dirs, strict=True)}
    values = _values(runs, settings, resamples, confidence, seed)
    output.mkdir(parents=True, exist_ok=True)
    (output / PAGE_NAME).write_bytes(render(comparison_page(values), TEMPLATE))
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (output / JSON_NAME).write_text(text + "\n", encoding="utf-8")
    (output / MARKDOWN_NAME).write_text(_markdown(values), encoding="utf-8")
    files = tuple(output / name for name in (PAGE_NAME, JSON_NAME, MARKDOWN_NAME))
    return Comparison(values, _summary(values), files)


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """Directory names, with the parent's where they are not unique."""
    short = [path.resolve().name for path in run_dirs]
    if len(set(short)) == len(short):
        return short
    longer = [f"{path.resolve().parent.name}/{path.resolve().name}" for path in run_dirs]
    if len(set(longer)) < len(longer):
        raise ConfigError("the same run twice", got=", ".join(str(path) for path in run_dirs))
    return longer


def _values(
    runs: Mapping[str, Artefacts],
    settings: Mapping[str, Mapping[str, Any]],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    languages = list(
        dict.fromkeys(language for artefacts in runs.values() for language in _languages(artefacts))
    )
    first = next(iter(runs))
    values: dict[str, Any] = {
        "schema_version": 1,
        "reference": first,
        "confidence": confidence,
        "runs": {name: facts(artefacts) for name, artefacts in runs.items()},
        "languages": languages,
        "base": {},
        "result": {},
        "difference": {},
        "same_text": {},
        "tokens_per_byte": {},
        "benchmarks": _benchmarks(runs),
        "curves": {name: curves(artefacts) for name, artefacts in runs.items()},
        "settings": _differences(settings),
        "warnings": _warnings(runs),
    }
    values["compute_matched"] = compute_matched(values["curves"])
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
            scores = {name: artefacts.scores(language) for name, artefacts in runs.items()}
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


def _benchmarks(runs: Mapping[str, Artefacts]) -> dict[str, dict[str, Any]]:
    """Benchmarks of the results, by key and run."""
    found: dict[str, dict[str, Any]] = {}
    for name, artefacts in runs.items():
        for key, outcome in (artefacts.results or {}).get("benchmarks", {}).get("result", {}).items():
            found.setdefault(key, {})[name] = outcome
    return found


def _settings(run_dir: Path) -> dict[str, Any]:
    """Settings of a run by dotted path, without those that only name things; empty when it left none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError("unreadable configuration of a run", where=path, got=error) from error
    return {key: value for key, value in flatten(loaded).items() if key.partition(".")[0] not in _NAMING}


def _differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings in which runs differ, by path and run; a run that lacks one is left out of its mapping."""
    if not all(settings.values()):
        return {}
    off = {key for flat in settings.values() for key, value in flat.items() if value is None}
    folded = {name: _fold(flat, off) for name, flat in settings.items()}
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for flat in folded.values() for key in flat):
        values = {name: flat[key] for name, flat in folded.items() if key in flat}
        first = next(iter(values.values()))
        if len(values) < len(folded) or any(value != first for value in values.values()):
            found[key] = values
    return found


def _fold(flat: Mapping[str, Any], off: set[str]) -> dict[str, Any]:
    """Sections that another run sets to null as one setting each, instead of one for each of their keys.

    >>> _fold({"extend.size": 8, "seed": 1}, {"extend"})
    {'extend': {'size': 8}, 'seed': 1}
    """
    folded: dict[str, Any] = {}
    for key, value in flat.items():
        section = next((path for path in off if key.startswith(f"{path}.")), None)
        if section is None:
            folded[key] = value
        else:
            folded.setdefault(section, {})[key.removeprefix(f"{section}.")] = value
    return folded


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
    parts = [
        f"# {' against '.join(values['runs'])}",
        f"Bits per byte on held-out text, {values['confidence']:.0%} confidence intervals over documents; "
        f"lower is better. Differences are to {values['reference']}, on the same documents.",
        quality_table(values).markdown(),
        runs_table(values).markdown(),
        *values["warnings"],
    ]
    for axis, entry in values["compute_matched"].items():
        parts.append(f"Held-out bits per byte during training after {short(entry['at'])} {_COSTS[axis]}:")
        parts.append(reached_table(values, axis).markdown())
    if values["tokens_per_byte"]:
        parts += ["Tokens per byte of held-out text:", vocabulary_table(values).markdown()]
    if values["benchmarks"]:
        parts.append(benchmarks_table(values).markdown())
    return "\n\n".join(parts) + "\n"
