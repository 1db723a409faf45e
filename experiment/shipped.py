"""Files that ship with Tsugiki, found by the names they have in a checkout: ``configs/…``, ``tests/fixtures/…``.

In a wheel they lie inside the package, in a checkout beside it. A file of that name below the working directory
goes first, so a user's own ``configs/`` is never shadowed.
"""

from __future__ import annotations

import re
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
    if path.is_absolute():
        return None
    for name in _FOLDERS:
        try:
            rest = path.relative_to(name)
        except ValueError:
            continue
        found = shipped_folder(name) / rest
        fixed = found
        while re.search(r"[*?\[]", str(fixed.relative_to(shipped_folder(name)))):
            fixed = fixed.parent
        return found if fixed.exists() else None
    return None


def find(path: Path) -> Path:
    """The path itself where it exists, else what ships under that name, else the path itself."""
    return path if path.exists() else shipped(path) or path


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
