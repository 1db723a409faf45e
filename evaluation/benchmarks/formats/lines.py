"""JSON and tab-separated lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record

_SGML = re.compile(r"\s*(<\?xml|<!DOCTYPE|<(src|ref|tst)set)", re.IGNORECASE)
_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.IGNORECASE)


@FORMATS.register("json")
def read_json(text: str, *, names: Mapping[str, str] | None = None) -> list[Record]:
    """A JSON list, JSON lines, or one object over several lines.

    Args:
        text: of the file.
        names: fields that are called otherwise: ``{answer: answers}``.
    """
    called = names or {}
    return [{called.get(key, key): value for key, value in item.items()} for item in _items(text)]


def _items(text: str) -> list[Record]:
    if text.lstrip().startswith("["):
        listed: list[Record] = json.loads(text)
        return listed
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        try:
            return [json.loads(text)]
        except json.JSONDecodeError:
            raise error from None  # the line is what there is to look at


@FORMATS.register("csv")
def read_csv(text: str) -> list[Record]:
    """Comma-separated values with a line of names."""
    return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]


@FORMATS.register("text")
def read_text(text: str, *, field: str = "line") -> list[Record]:
    """A record each line, white space at its end removed; of WMT's SGML, one each segment."""
    if _SGML.match(text):
        return [{field: segment.strip()} for segment in _SEGMENT.findall(text)]
    return [{field: line.rstrip()} for line in text.removesuffix("\n").split("\n")]


@FORMATS.register("tsv")
def read_tsv(text: str, *, columns: Sequence[str]) -> list[Record]:
    """Tab-separated lines, as records of these columns."""
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in text.splitlines() if line.strip()]
