"""Where the intermediate files of a corpus run are, below ``<output>/.work``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from tsugiki.data.common.shard import Shard
from tsugiki.experiment.files import read_json, write_json_atomically
from tsugiki.experiment.run.folders import refuse_foreign_partial, remove_entry

WORK_FOLDER = ".work"

KEY_TYPE = np.dtype(
    [("text_high", "<u8"), ("text_low", "<u8"), ("url", "<u8"), ("heldout", "<u8"), ("bytes", "<u8")]
)
"""Per kept document: 128-bit hash of the normalised text, 64-bit hash of the address (0: none),
64-bit hash that decides the held-out split, UTF-8 bytes of text. 40 bytes."""


def open_work(output_dir: Path, plan: Any) -> Path:
    """The folder of a stage's intermediate files; what another plan left there is removed.

    Args:
        output_dir: the stage's partial directory. Hidden files, by which the graph knows it, stay.
        plan: JSON values that decide the content.

    Raises:
        ConfigError: the directory has content and no sign that a stage of ours made it.
    """
    work = output_dir / WORK_FOLDER
    marker = work / "plan.json"
    if _known(marker) != plan:
        if not any(work.glob(f"{marker.name}*")):  # a kill leaves plan.json.partial
            refuse_foreign_partial(output_dir, output_dir.name.removesuffix(".partial"))
        # First, so that what a kill leaves is known as ours, and as no plan's.
        write_json_atomically(marker, None, indent=None)
        for item in [*work.iterdir(), *output_dir.iterdir()]:
            if item not in (work, marker) and (item.parent == work or item.is_dir() or item.name[0] != "."):
                remove_entry(item)
        write_json_atomically(marker, plan, indent=None, errors="replace")
    return work


def _known(marker: Path) -> Any:
    try:
        return read_json(marker)
    except (OSError, ValueError, RecursionError):  # none, or a damaged one: begin anew
        return None


class Workspace:
    """Paths of the intermediate files of a run, below ``<output>/.work``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def filtered(self, shard: Shard) -> Path:
        """Documents after the first pass."""
        return self.root / "filtered" / f"{shard.name}.jsonl.zst"

    def keys(self, shard: Shard) -> Path:
        """Hashes of those documents, in their order (:data:`KEY_TYPE`)."""
        return self.root / "filtered" / f"{shard.name}.keys.npy"

    def stats(self, phase: str, shard: Shard) -> Path:
        """Counts of a phase."""
        return self.root / phase / f"{shard.name}.stats.json"

    def lines(self, shard: Shard) -> Path:
        """How many documents of each host contain which lines."""
        return self.root / "filtered" / f"{shard.name}.lines.npy"

    def repeated_lines(self, source: str) -> Path:
        """Repeated lines of a source."""
        return self.root / "line_dedup" / f"{source}.npy"

    def verdicts(self, phase: Literal["exact", "heldout"], shard: Shard) -> Path:
        """What becomes of each document, as known after a phase."""
        return self.root / phase / f"{shard.name}.npy"

    def minhash(self, group: str, stage: str) -> Path:
        """Folder of a MinHash stage."""
        return self.root / "minhash" / group / stage

    def logs(self, phase: str) -> Path:
        """Completion markers, statistics and logs of a phase."""
        return self.root / "logs" / phase
