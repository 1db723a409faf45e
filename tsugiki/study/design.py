"""Designs: which values each trial has, and its name."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tsugiki.experiment.files import sha256_json
from tsugiki.study.config import Span, StudyConfig, Values

_LONGEST_NAME = 80


def designed(study: StudyConfig) -> dict[str, Values]:
    """Trial -> the values in which it differs from the others; the name follows from the values alone.

    A study that gets more values keeps the names, and with them the run directories, of the trials that it had.
    """
    found: dict[str, Values] = {}
    for values in _points(study):
        found.setdefault(trial_name(values), values)
    return found


def _points(study: StudyConfig) -> Iterator[Values]:
    if study.grid:
        for point in itertools.product(*study.grid.values()):
            yield dict(zip(study.grid, point, strict=True))
    elif study.random is not None:
        draws = random.Random(study.random.seed)
        for _ in range(study.random.trials):
            yield {key: _draw(span, draws) for key, span in study.random.keys.items()}
    else:
        yield from study.trials


def _draw(span: Span, draws: random.Random) -> Any:
    if span.choices is not None:
        return draws.choice(span.choices)
    assert span.low is not None and span.high is not None  # Span has checked it
    if span.log:
        value = math.exp(draws.uniform(math.log(span.low), math.log(span.high)))
    else:
        value = draws.uniform(span.low, span.high)
    if span.integer:
        return min(max(round(value), math.ceil(span.low)), math.floor(span.high))
    return float(f"{value:.4g}")


def trial_name(values: Mapping[str, Any]) -> str:
    """A name of the values, fit for a folder.

    >>> trial_name({"train.optimizer.learning_rate": 1e-4, "tokenizer.extend.size": 512})
    'learning_rate-0.0001_size-512'
    """
    parts = [f"{_short(key, values)}-{_text(key, value)}" for key, value in values.items()]
    name = "_".join(parts)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9].rstrip('._-')}_{_digest(dict(values))}"
    return name


def _text(key: str, value: Any) -> str:
    """A value in characters that a name may have, another text for every other value."""
    if isinstance(value, Mapping) and value and all(re.fullmatch("[a-z_-]+", str(name)) for name in value):
        parts = [f"{name}{number}" for name, number in value.items() if isinstance(number, (int, float))]
        if len(parts) == len(value):
            return ".".join(parts).replace("+", "")
    plain = isinstance(value, (str, int, float)) or value is None
    text = re.sub(r"[^A-Za-z0-9.+-]+", ".", str(value)) if plain else ""
    return text.replace("+", "") if plain and text == str(value) else _digest({key: value})


def _short(key: str, keys: Mapping[str, Any]) -> str:
    """The end of a dotted path that no other has."""
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        end = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _digest(values: Mapping[str, Any]) -> str:
    return sha256_json(dict(values))[:8]
