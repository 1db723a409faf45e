"""Configuration against its models: all mistakes at once, each with value, expectation, file and line.

Each stage owns a ``config.py`` with models derived from :class:`tsugiki.experiment.config.strict.StrictModel`.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tsugiki.experiment.config.fingerprint import FingerprintedAs
from tsugiki.experiment.config.load import RawConfig, load_raw
from tsugiki.experiment.config.strict import members
from tsugiki.experiment.config.yaml_values import Location
from tsugiki.experiment.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def load_config(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read, merge, override and validate a configuration.

    Raises:
        ConfigError: with one block per mistake: dotted path, value, expectation, file and line.
    """
    return validate(model, load_raw(path, overrides))


def validate(model: type[Model], raw: RawConfig) -> Model:
    """Check a merged configuration against its model.

    Raises:
        ConfigError: all mistakes at once.
    """
    try:
        return model.model_validate(raw.values)
    except ValidationError as error:
        blocks = [_explain(model, raw, item) for item in error.errors()]
        first, *rest = list(dict.fromkeys(blocks))
        raise ConfigError("\n".join([first, *rest])) from error


def _explain(model: type[BaseModel], raw: RawConfig, error: Mapping[str, Any]) -> str:
    location = _strip_union_tags(raw.values, error["loc"])
    dotted = ".".join(str(item) for item in location) or "(top level)"
    lines: list[str] = []
    if error["type"] == "extra_forbidden":
        valid = sorted(_valid_keys(model, location[:-1]))
        key = str(location[-1])
        lines.append(f"unknown key '{dotted}'")
        renamed = _renamed(model, location[:-1]).get(key)
        near = [renamed] if renamed else difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        if near:
            lines.append(f"  fix:      did you mean '{near[0]}'?")
        if valid:
            lines.append(f"  expected: one of {', '.join(valid)}")
    elif error["type"] == "missing":
        lines.append(f"'{dotted}' is required")
        if (description := _description(model, location)) is not None:
            lines.append(f"  expected: {description}")
    else:
        message = error["msg"].removeprefix("Value error, ")
        lines.append(f"wrong value for '{dotted}'")
        shown = repr(error["input"])
        if not isinstance(error["input"], (dict, list)) or len(shown) < 80:
            lines.append(f"  got:      {shown}")
        lines.append(f"  expected: {message}")
    if (mark := raw.mark(location)) is not None:
        lines.insert(1, f"  where:    {mark}")
    return "\n".join(lines)


def _strip_union_tags(values: Any, location: Location) -> Location:
    """Drop the parts pydantic adds for union members, which no user wrote."""
    kept: list[str | int] = []
    current = values
    for position, step in enumerate(location):
        if isinstance(current, dict) and step in current:
            current = current[step]
        elif isinstance(current, list) and isinstance(step, int) and step < len(current):
            current = current[step]
        elif position < len(location) - 1 or not isinstance(current, dict):
            continue
        kept.append(step)
    return tuple(kept)


def _annotations_at(model: Any, location: Location) -> list[Any]:
    current: list[Any] = [model]
    for step in location:
        following: list[Any] = []
        for annotation in current:
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                if (field := annotation.model_fields.get(str(step))) is not None:
                    following.extend(members(field.annotation))
            elif typing.get_origin(annotation) in (list, dict, tuple, Mapping):
                arguments = typing.get_args(annotation)
                if arguments:
                    following.extend(members(arguments[-1]))
        current = following
    return current


def _fields_at(model: type[BaseModel], location: Location) -> dict[str, FieldInfo]:
    return {
        name: info
        for annotation in _annotations_at(model, location)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
        for name, info in annotation.model_fields.items()
    }


def _valid_keys(model: type[BaseModel], location: Location) -> set[str]:
    return set(_fields_at(model, location))


def _renamed(model: type[BaseModel], location: Location) -> dict[str, str]:
    """Present names of the keys at a location by their earlier ones."""
    return {
        mark.name: name
        for name, info in _fields_at(model, location).items()
        for mark in info.metadata
        if isinstance(mark, FingerprintedAs) and mark.name is not None
    }


def _description(model: type[BaseModel], location: Location) -> str | None:
    for annotation in _annotations_at(model, location[:-1]):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(location[-1]))
            if field is not None and field.description:
                return " ".join(field.description.split())
    return None
