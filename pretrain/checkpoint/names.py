"""Names of checkpoints: what among them is ours, and what a user has put beside them."""

from __future__ import annotations

import re
from pathlib import Path

MARK_NAME = "checkpoint.json"
"""Written last into a checkpoint: with it, the checkpoint is complete."""


def iteration_name(iteration: int) -> str:
    """Name of the folder of an iteration."""
    return f"iter_{iteration:07d}"


def iteration_of(name: str) -> int | None:
    """The iteration that a folder's name means; None for a name that we do not give (``iter_0000500.keep``)."""
    # Digits of other scripts are digits to str.isdigit() and to int().
    found = re.fullmatch(r"iter_([0-9]{7,18})", name)
    return int(found[1]) if found and name == iteration_name(int(found[1])) else None


def complete_checkpoints(directory: Path) -> dict[int, Path]:
    """Folders with a mark by their iteration, newest first.

    Raises:
        OSError: the directory is there and cannot be read.
    """
    # Not glob(): it takes a directory that may not be read for an empty one.
    entries = list(directory.iterdir()) if directory.exists() else []
    found = {iteration: entry for entry in entries if (iteration := iteration_of(entry.name)) is not None}
    return {item: found[item] for item in sorted(found, reverse=True) if (found[item] / MARK_NAME).is_file()}
