"""YAML as plain values with the line of every key: what means something else than it says is refused by line.

Limits keep time and memory small whatever a file holds; a configuration is far below each of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from tsugiki.experiment.errors import ConfigError

Location = tuple[str | int, ...]

MAX_BYTES = 2**20
"""Of a file. PyYAML reads about 100 kB a second."""
_MAX_VALUES = 100_000
"""Of a file with its aliases opened: a million of them fit into a few lines."""
_MAX_INTEGER = 2**63
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")
)
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


@dataclass(frozen=True)
class Mark:
    """Where a value of the merged configuration was written."""

    file: str
    line: int | None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


def parse(text: str, file: str, marks: dict[Location, Mark], location: Location = ()) -> Any:
    """The value of a YAML document; None for an empty one.

    Args:
        text: the document.
        file: its name, for the marks.
        marks: gets file and line of every key and item, by location.
        location: of the document within the configuration.

    Raises:
        ConfigError: it is not YAML, or holds what a configuration has no use for: tags, numbers in another base
            than they look, anchors within themselves, more values or levels than anyone writes.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _Constructor(file, marks).value(node, location, ())
    except yaml.YAMLError as error:
        raise ConfigError("not valid YAML", where=file, got=" ".join(str(error).split())) from error
    except RecursionError:
        raise ConfigError(
            "not valid YAML",
            where=file,
            got="values nested hundreds of levels deep",
            expected="a dozen at most",
        ) from None


class _Constructor:
    """Plain values of the nodes of one document."""

    def __init__(self, file: str, marks: dict[Location, Mark]) -> None:
        self._file = file
        self._marks = marks
        self._scalars = yaml.SafeLoader("")
        self._values = 0

    def value(self, node: yaml.Node, location: Location, within: tuple[int, ...]) -> Any:
        """The value of a node that lies within others, which are given by identity."""
        mark = Mark(self._file, node.start_mark.line + 1)
        self._marks.setdefault(location, mark)
        self._values += 1
        if self._values > _MAX_VALUES:
            raise ConfigError(
                "more values than a configuration has", where=mark,
                got=f"over {_MAX_VALUES:,}, aliases opened", fix="write fewer aliases of aliases",
            )  # fmt: skip
        if id(node) in within:
            raise ConfigError(
                "an anchor stands within itself", where=mark, got=f"'{_dotted(location)}'",
                expected="a value that ends", fix="remove the alias",
            )  # fmt: skip
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, location, (*within, id(node)))
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            inner = (*within, id(node))
            return [self.value(item, (*location, i), inner) for i, item in enumerate(node.value)]
        return self._scalar(node, location, mark)

    def _mapping(self, node: yaml.MappingNode, location: Location, within: tuple[int, ...]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = Mark(self._file, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key is a word", where=mark, got="a list or mapping as key")
            # Keys are taken as written: language codes such as `no` must not become booleans.
            key = str(key_node.value)
            if key in mapping:
                raise ConfigError(
                    f"key '{key}' is written twice",
                    where=mark,
                    got=f"first at {self._marks[(*location, key)]}",
                    fix="keep one",
                )
            self._marks[(*location, key)] = mark
            mapping[key] = self.value(value_node, (*location, key), within)
        return mapping

    def _scalar(self, node: yaml.Node, location: Location, mark: Mark) -> Any:
        place = f"wrong value for '{_dotted(location)}'"
        if node.tag not in _TAGS or not isinstance(node, yaml.ScalarNode):
            raise ConfigError(
                place,
                where=mark,
                got=f"tag {_short(node.tag)}",
                expected="text, a number, true, false, null, a list or mapping",
            )
        number = node.tag.endswith((":int", ":float"))
        if number and node.style is None and _SEXAGESIMAL.fullmatch(node.value):
            return node.value  # a time of day or a span, which YAML 1.1 reads as a number to base 60
        if number and _OCTAL.fullmatch(node.value):
            raise ConfigError(
                place, where=mark, got=_short(node.value),
                expected="a number without leading zeros, which YAML reads as octal",
                fix=f"write {node.value.lstrip('+-0_') or '0'}, or quote it where it is text",
            )  # fmt: skip
        try:
            value = self._scalars.construct_object(node)
        except (ValueError, OverflowError, yaml.YAMLError) as error:
            raise ConfigError(
                place, where=mark, got=_short(node.value),
                expected=f"a value that YAML can read ({_short(str(error))})", fix="quote it where it is text",
            ) from error  # fmt: skip
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ConfigError(
                place, where=mark, got=_short(node.value), expected=f"an integer up to {_MAX_INTEGER:,}"
            )
        return value


def _dotted(location: Location) -> str:
    return ".".join(map(str, location)) or "(top level)"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text):,} characters)"
