"""Typed configuration: YAML with ``extends`` and ``--set``, errors that name the line.

Each stage owns a ``config.py`` with pydantic models derived from :class:`StrictModel`; this
module loads any of them. A document may say ``extends: other.yaml`` (relative to itself; a list
applies in order): mappings merge key by key, everything else replaces. ``--set a.b=c`` overrides
by dotted path; list items are named by position or by their ``name``.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from tsugiki.experiment.errors import ConfigError

# The markers belong to the sections, which import them with StrictModel.
from tsugiki.experiment.fingerprint import FingerprintedAs as FingerprintedAs
from tsugiki.experiment.fingerprint import NotFingerprinted as NotFingerprinted
from tsugiki.experiment.fingerprint import OmittedIfDefault as OmittedIfDefault
from tsugiki.experiment.fingerprint import OmittedIfNull as OmittedIfNull
from tsugiki.experiment.fingerprint import fingerprint as fingerprint
from tsugiki.experiment.shipped import experiment_path, find
from tsugiki.experiment.yaml_values import MAX_BYTES, Location, Mark, parse


class StrictModel(BaseModel):
    """Base of all configuration: unknown keys are errors, values are checked and immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`yes`, `no`, `on`, `off` are booleans in YAML 1.1; pydantic would take them for 1 and 0."""
        if info.field_name is not None and _has_boolean(value):
            _refuse_boolean(value, cls.model_fields[info.field_name].annotation)
        return value


def _has_boolean(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return any(map(_has_boolean, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def _is_literal_boolean(member: Any) -> bool:
    return typing.get_origin(member) is Literal and any(map(_has_boolean, typing.get_args(member)))


def _refuse_boolean(value: Any, annotation: Any) -> None:
    """Raise where a boolean stands for what is a number and nothing else that a boolean could be."""
    members = list(_members(annotation))
    if isinstance(value, bool):
        takes_boolean = any(
            member in (bool, Any, object) or _is_literal_boolean(member) for member in members
        )
        if not takes_boolean and (int in members or float in members):
            raise ValueError("a number; yes, no, on, off, true and false are booleans")
        return
    for item in value.values() if isinstance(value, dict) else value:
        if _has_boolean(item):
            for member in members:
                # Sections look at their own fields.
                if typing.get_origin(member) in (list, dict, tuple, Mapping, Sequence):
                    inner = [part for part in typing.get_args(member) if part is not Ellipsis]
                    _refuse_boolean(item, inner[-1])


Model = TypeVar("Model", bound=BaseModel)


@dataclass
class RawConfig:
    """A merged configuration before validation.

    Attributes:
        values: the plain mapping.
        marks: file and line of every key, by location.
    """

    values: dict[str, Any]
    marks: dict[Location, Mark]

    def mark(self, location: Location) -> Mark | None:
        """The mark of a location, or of the nearest enclosing one that has one."""
        for end in range(len(location), -1, -1):
            if (found := self.marks.get(location[:end])) is not None:
                return found
        return None


def read_yaml(path: Path) -> RawConfig:
    """Read one YAML file with the line of every key, ``extends`` not followed.

    Raises:
        ConfigError: the file is missing, is not UTF-8, is not YAML or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        if path.is_symlink():
            target = path.readlink()
            raise ConfigError(
                "the configuration is a link that leads nowhere", where=path, got=target
            ) from None
        raise ConfigError("no such configuration file", where=path, fix=_similar_files(path)) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the path
        raise ConfigError("cannot read the configuration", where=path, got=error) from error
    if len(content) > MAX_BYTES:
        raise ConfigError("too large for a configuration", where=path, got=f"over {MAX_BYTES:,} bytes")
    marks: dict[Location, Mark] = {}
    values = parse(text, str(path), marks)
    marks[()] = Mark(str(path), None)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            "a configuration is a mapping of keys",
            where=path,
            got=type(values).__name__,
            expected="key: value",
        )
    return RawConfig(values, marks)


def load_raw(path: Path, overrides: Sequence[str] = ()) -> RawConfig:
    """Read a configuration, follow ``extends``, apply ``--set`` overrides.

    Raises:
        ConfigError: unreadable file, circular ``extends``, malformed override.
    """
    raw = _load_extended(experiment_path(path), ())
    for override in overrides:
        _apply_override(raw, override)
    return raw


def _load_extended(path: Path, seen: tuple[Path, ...]) -> RawConfig:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(str(item) for item in (*seen, resolved))
        raise ConfigError("circular extends", where=path, got=chain)
    raw = read_yaml(path)
    parents = raw.values.pop("extends", None)
    if parents is None:
        return raw
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(item, str) for item in parents):
        raise ConfigError(
            "extends names one file or a list of files",
            where=raw.mark(("extends",)),
            got=repr(parents),
        )
    merged = RawConfig({}, {})
    for parent in parents:
        parent_path = path.parent / parent
        if not parent_path.is_file():
            raise ConfigError(
                "extends names a file that does not exist",
                where=raw.mark(("extends",)),
                got=parent_path,
                expected="a path relative to the file that says extends",
                fix=_similar_files(parent_path),
            )
        _merge(merged, _load_extended(parent_path, (*seen, resolved)))
    _merge(merged, raw)
    return merged


def _merge(onto: RawConfig, new: RawConfig) -> None:
    onto.values = _merged(onto.values, new.values, (), onto.marks)
    onto.marks.update(new.marks)


def _merged(old: Any, new: Any, location: Location, marks: dict[Location, Mark]) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        result = dict(old)
        for key, value in new.items():
            result[key] = _merged(old.get(key), value, (*location, key), marks)
        return result
    # A replaced value takes the marks below it along.
    for stale in [item for item in marks if item[: len(location)] == location and item != location]:
        del marks[stale]
    return new


def _apply_override(raw: RawConfig, override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(
            "malformed --set", got=override, expected="dotted.path=value, e.g. train.optimizer.lr=1e-4"
        )
    value = parse(text, f"--set {override[:200]}", {}, tuple(name.strip().split(".")))
    set_value(raw, name.strip(), value, f"--set {override}")


def set_value(raw: RawConfig, name: str, value: Any, origin: str) -> None:
    """Set one value by dotted path; list items are named by position or by their ``name``.

    Args:
        raw: changed in place.
        name: dotted path.
        value: plain value: what YAML could hold.
        origin: where the value comes from, for messages.

    Raises:
        ConfigError: the path goes below a value that has no keys, or names no item of a list.
    """
    location: Location = ()
    container: Any = raw.values
    keys = name.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        step: str | int = key
        if isinstance(container, list):
            step = _list_position(container, key, origin)
        elif not isinstance(container, dict):
            raise ConfigError(
                f"{origin} goes below a value that has no keys",
                where=".".join(keys[:depth]),
                got=repr(container),
            )
        location = (*location, step)
        if last:
            container[step] = value
        else:
            if isinstance(container, dict) and container.get(key) is None:
                container[key] = {}
            container = container[step]
    for stale in [item for item in raw.marks if item[: len(location)] == location]:
        del raw.marks[stale]
    raw.marks[location] = Mark(origin, None)


def _list_position(items: list[Any], key: str, origin: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isascii() and key.isdigit() and len(key) < 10 and int(key) < len(items):
        return int(key)
    valid = [str(name) if name else str(position) for position, name in enumerate(names)]
    raise ConfigError("no such item of the list", got=origin, expected=f"one of {', '.join(valid)}")


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


def _members(annotation: Any) -> Iterator[Any]:
    """Classes in an annotation, unions, optionals and Annotated opened."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from _members(typing.get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _members(argument)
    else:
        yield annotation


def _annotations_at(model: Any, location: Location) -> list[Any]:
    current: list[Any] = [model]
    for step in location:
        following: list[Any] = []
        for annotation in current:
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                if (field := annotation.model_fields.get(str(step))) is not None:
                    following.extend(_members(field.annotation))
            elif typing.get_origin(annotation) in (list, dict, tuple, Mapping):
                arguments = typing.get_args(annotation)
                if arguments:
                    following.extend(_members(arguments[-1]))
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


def _similar_files(path: Path) -> str | None:
    parent = path.parent if path.parent.is_dir() else None
    if parent is None:
        return f"the folder {path.parent} does not exist either"
    try:
        names = [item.name for item in parent.iterdir()]
    except OSError:
        return None  # the error that this would explain is enough
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {parent / near[0]}?" if near else None


def dump_yaml(model: BaseModel) -> str:
    """A validated configuration as YAML that loads to the same values."""
    return yaml.safe_dump(
        model.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def expand_path(text: str) -> Path:
    """A path from a configuration: ``~`` and ``$VARIABLES`` expanded, else relative to the working directory.

    What is not there and ships with Tsugiki (``configs/…``, ``tests/fixtures/…``) is found where it was installed.

    Raises:
        ConfigError: a variable is not set, there is no such user, or no file system takes the path.
    """
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise ConfigError("a path uses a variable that is not set", got=text)
    try:
        path = Path(expanded).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "a path begins with the home directory of a user who is not known here",
            got=text,
            expected="~ for your own, or ~user of an account on this machine",
            fix="write the whole path",
        ) from error
    if "\0" in expanded:
        raise ConfigError("a path holds a null byte", got=repr(text), expected="the path of a file or folder")
    try:
        return find(path)
    except OSError as error:
        got = f"{text[:80]}: {error.strerror}"
        raise ConfigError(
            "a path cannot be used", got=got, expected="the path of a file or folder"
        ) from error
