"""JSON and tab-separated lines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record


@FORMATS.register("json")
def read_json(text: str) -> list[Record]:
    """A JSON list, or JSON lines."""
    if text.lstrip().startswith("["):
        listed: list[Record] = json.loads(text)
        return listed
    return [json.loads(line) for line in text.splitlines() if line.strip()]


@FORMATS.register("tsv")
def read_tsv(text: str, *, columns: Sequence[str]) -> list[Record]:
    """Tab-separated lines, as records of these columns."""
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in text.splitlines() if line.strip()]
