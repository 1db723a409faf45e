"""Files that ship with Tsugiki, found by the names they have in a checkout: ``configs/…``, ``tests/fixtures/…``.

In a wheel they lie inside the package, in a checkout beside it. A file of that name below the working directory
goes first, so a user's own ``configs/`` is never shadowed.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from tsugiki.experiment.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
"""The installed package, or the checkout."""
_FOLDERS = {"configs": "configs", "tests/fixtures": "fixtures"}
"""Name in a checkout -> name inside the installed package."""
_EXPERIMENTS = ("configs", "configs/recipes", "configs/ablation")
"""Where an experiment given by its bare name is looked for."""


def shipped_folder(name: str) -> Path:
    """The folder that is called ``configs`` or ``tests/fixtures`` in a checkout."""
    packaged = _PACKAGE / _FOLDERS[name]
    return packaged if packaged.is_dir() else _PACKAGE / name


def shipped(path: Path) -> Path | None:
    """The shipped file, folder or pattern behind a relative path, None where the path is not one of ours."""
    for name in _FOLDERS:
        if path.is_relative_to(name):
            found = shipped_folder(name) / path.relative_to(name)
            return found if _fixed(found).exists() else None
    return None


def find(path: Path) -> Path:
    """The path or pattern itself where it exists, else what ships under that name, else the path itself."""
    return path if _fixed(path).exists() else shipped(path) or path


def _fixed(pattern: Path) -> Path:
    """The part of a pattern before the first wildcard."""
    parts = pattern.parts
    return Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), parts))


def experiment_path(given: Path) -> Path:
    """The file of an experiment: by path, by its path in a checkout, or by the bare name of a shipped one.

    Raises:
        ConfigError: a bare name that no shipped experiment has.
    """
    found = find(given)
    if found.exists() or given.suffix in (".yaml", ".yml") or len(given.parts) != 1:
        return found
    candidates = {
        file.stem: file for folder in _EXPERIMENTS for file in sorted(find(Path(folder)).glob("*.yaml"))
    }
    if given.name in candidates:
        return candidates[given.name]
    raise ConfigError(
        "no such experiment", where="CONFIG", got=str(given),
        expected=f"a path of a YAML file, or one of {', '.join(candidates)}",
    )  # fmt: skip
