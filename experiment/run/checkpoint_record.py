"""The sums that a training checkpoint keeps of its own files, taken when they were written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT_MARK = "checkpoint.json"


@dataclass(frozen=True)
class Sum:
    """What a file was when it was written.

    Attributes:
        sha256: of its content.
        recorded_in: file that says so.
        bytes: its size; None where only the sum is known.
    """

    sha256: str
    recorded_in: Path
    bytes: int | None = None


def checkpoint_sums(path: Path) -> dict[Path, Sum]:
    """Sums in the ``checkpoint.json`` of a training checkpoint."""
    files = json.loads(path.read_bytes())["files"]
    return {
        path.parent / name: Sum(str(file["sha256"]), path, int(file["bytes"])) for name, file in files.items()
    }
