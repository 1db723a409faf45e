"""Files of a user's own modules, which decide what a stage makes as the configuration does."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_INSTALLED = tuple(
    Path(path).resolve()
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "purelib", "platlib")
)


def source_files(modules: Iterable[str]) -> list[Path]:
    """Files of these imported modules, those of installed packages left out, sorted.

    An installed package changes with its version only; a module of one's own changes under the same name.
    """
    found: set[Path] = set()
    for module in modules:
        name = getattr(sys.modules.get(module), "__file__", None)
        if name is None or module.startswith("tsugiki."):  # ours changes with the stage's version
            continue
        path = Path(name).resolve()
        if not any(path.is_relative_to(folder) for folder in _INSTALLED):
            found.add(path)
    return sorted(found)
