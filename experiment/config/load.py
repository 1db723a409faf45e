"""Configuration files: YAML with ``extends`` and ``--set``, every key with its line.

A document may say ``extends: other.yaml`` (relative to itself; a list applies in order): mappings merge key by key,
everything else replaces. ``--set a.b=c`` overrides by dotted path; list items are named by position or by their
``name``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.config.shipped import experiment_path
from tsugiki.experiment.config.yaml_values import MAX_BYTES, Location, Mark, parse
from tsugiki.experiment.errors import ConfigError


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
