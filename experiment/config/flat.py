"""A nested configuration as plain pairs, as trackers and comparisons show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(value: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path; items of lists of sections by their ``name``, or by position if names are not unique.

    >>> flatten({"a": {"b": 1}, "sources": [{"name": "x", "path": "p"}], "list": [1, 2], "none": {}})
    {'a.b': 1, 'sources.x.name': 'x', 'sources.x.path': 'p', 'list': [1, 2], 'none': {}}
    """
    return dict(_pairs(value, ""))


def _pairs(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        names = [str(item.get("name", at)) for at, item in enumerate(value)]
        unique = len(set(names)) == len(names)
        items = [
            (name if unique else str(at), item)
            for at, (name, item) in enumerate(zip(names, value, strict=True))
        ]
    else:
        yield path, value
        return
    for name, item in items:
        yield from _pairs(item, f"{path}.{name}" if path else name)
