"""Files that ship with Tsugiki, found by the names they have in a checkout: ``configs/…``, ``tests/fixtures/…``.

In a wheel they lie inside the package, in a checkout beside it. A file of that name below the working directory
goes first, so a user's own ``configs/`` is never shadowed.
"""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path

from tsugiki.experiment.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[2]
"""The installed package, or the checkout."""
_FOLDERS = {"configs": "configs", "tests/fixtures": "fixtures"}
"""Name in a checkout -> name inside the installed package."""
_EXPERIMENTS = ("configs", "configs/recipes", "configs/ablation")
"""Where an experiment given by its bare name is looked for."""
CLUSTERS_FOLDER = "configs/clusters"
"""Where a cluster given by its bare name is looked for."""


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


def shipped_name(path: Path) -> Path:
    """The name in a checkout of a file that :func:`shipped` found, wherever Tsugiki is installed."""
    for name in _FOLDERS:
        if path.is_relative_to(shipped_folder(name)):
            return Path(name) / path.relative_to(shipped_folder(name))
    return path


def find(path: Path) -> Path:
    """The path or pattern itself where it exists, else what ships under that name, else the path itself."""
    return path if _fixed(path).exists() else shipped(path) or path


def _fixed(pattern: Path) -> Path:
    """The part of a pattern before the first wildcard."""
    parts = pattern.parts
    return Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), parts))


def names(*folders: str) -> dict[str, Path]:
    """Bare name -> YAML file of these folders: what ships, and over it what the working directory has."""
    found: dict[str, Path] = {}
    for folder in folders:
        for place in dict.fromkeys([shipped(Path(folder)), Path(folder)]):
            if place is not None:
                found.update({file.stem: file for file in sorted(place.glob("*.yaml"))})
    return found


def experiments() -> dict[str, Path]:
    """Bare name -> file of every experiment."""
    return names(*_EXPERIMENTS)


def clusters() -> dict[str, Path]:
    """Bare name -> file of every Slurm site."""
    return names(CLUSTERS_FOLDER)


def experiment_path(given: Path) -> Path:
    """The file of an experiment: by path, by its path in a checkout, or by the bare name of a shipped one.

    Raises:
        ConfigError: a bare name that no shipped experiment has.
    """
    found = find(given)
    # A folder of this name is no experiment: `llama-2-7b` may be a model that lies in the working directory.
    if found.is_file() or given.suffix in (".yaml", ".yml") or len(given.parts) != 1:
        return found
    known = experiments()
    if given.name in known:
        return known[given.name]
    near = difflib.get_close_matches(given.name, known, n=1, cutoff=0.5)
    raise ConfigError(
        "no such experiment", where="CONFIG", got=str(given),
        expected=f"a path of a YAML file, or one of {', '.join(known)}",
        fix=f"did you mean {near[0]}?" if near else None,
    )  # fmt: skip


def checkout() -> Path | None:
    """The checkout that this code is run from, None where it was installed from a wheel."""
    return _PACKAGE if (_PACKAGE / "setup.py").is_file() and (_PACKAGE / "tsugiki").is_dir() else None
