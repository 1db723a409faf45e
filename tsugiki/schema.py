"""JSON Schema of what is written in YAML, for editors: `tsugiki schema`, checked in as ``configs/schema/``."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from tsugiki.experiment.errors import ConfigError

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EXTENDS = {
    "description": "Files, relative to this one, whose values apply where this one says nothing.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def _experiment() -> type[BaseModel]:
    from tsugiki.pipeline import ExperimentConfig

    return ExperimentConfig


def _cluster() -> type[BaseModel]:
    from tsugiki.slurm.config import ClusterConfig

    return ClusterConfig


def _filters() -> type[BaseModel]:
    from tsugiki.data.profiles import Profile

    return Profile


def _study() -> type[BaseModel]:
    from tsugiki.study.config import StudyConfig

    return StudyConfig


KINDS: dict[str, Callable[[], type[BaseModel]]] = {
    "experiment": _experiment,
    "cluster": _cluster,
    "filters": _filters,
    "study": _study,
}
"""Kind of file -> its model."""


def schema(kind: str = "experiment") -> dict[str, Any]:
    """The JSON Schema of one kind of file.

    A file that says ``extends`` may leave out what is required elsewhere; it is checked against the same definitions
    without their required keys.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise ConfigError(
            "no such kind of file", got=kind, expected=f"one of {', '.join(KINDS)}",
            fix=f"did you mean {near[0]}?" if near else None,
        )  # fmt: skip
    whole = KINDS[kind]().model_json_schema(mode="validation", ref_template="#/$defs/{model}")
    definitions = whole.pop("$defs", {})
    name = whole.get("title", kind)
    whole["properties"] = {"extends": _EXTENDS, **whole["properties"]}
    partial = {
        _partial_name(key): _without_required(value) for key, value in {name: whole, **definitions}.items()
    }
    return {
        "$schema": _DIALECT,
        "title": f"Tsugiki: {kind}",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"#/$defs/{_partial_name(name)}"},
        "else": {"$ref": f"#/$defs/{name}"},
        "$defs": {name: whole, **definitions, **partial},
    }


def schema_text(kind: str) -> str:
    """The schema as the file that is checked in."""
    return json.dumps(schema(kind), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _partial_name(name: str) -> str:
    return f"{name}.partial"


def _without_required(value: Any) -> Any:
    """The same schema for a part of the values: no required keys, references to parts."""
    if isinstance(value, list):
        return [_without_required(item) for item in value]
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key == "required" and isinstance(item, list):
            continue
        if key == "$ref":
            found[key] = f"{item}.partial"
        elif key == "properties":
            found[key] = {name: _without_required(child) for name, child in item.items()}
        elif key in ("default", "const", "enum"):
            found[key] = copy.deepcopy(item)
        elif key == "oneOf":  # without required keys a value may fit several
            found["anyOf"] = _without_required(item)
        elif key != "discriminator":
            found[key] = _without_required(item)
    return found
