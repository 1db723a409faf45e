"""Paths in configurations."""

from __future__ import annotations

import os
from pathlib import Path

from tsugiki.experiment.config.shipped import find
from tsugiki.experiment.errors import ConfigError


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
