"""One file per format of the input: adding a file adds a format. See docs/how-to-add.md."""

from __future__ import annotations

from typing import Any

from tsugiki.experiment.config.registry import Registry

READERS: Registry[Any] = Registry("source format", ["tsugiki.data.readers"])
"""Subclasses of :class:`tsugiki.data.readers.base.Reader` by the name that ``format`` gives."""


def reader_class(name: str) -> Any:
    """The reader of a format: one of ours by its name, or a user's own, ``package.module:Class``.

    Raises:
        ConfigError: no such format; the module cannot be imported.
    """
    return READERS.load_object(name) if ":" in name else READERS.get(name)
