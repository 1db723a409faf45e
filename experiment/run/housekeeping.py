"""Runs on a disk: which there are, what they take, and what of it can go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.folders import is_ours, remove_folder
from tsugiki.experiment.run.lock import locked
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage_names import STAGE_NAMES
from tsugiki.experiment.run.status import read_status

Kind = Literal["superseded", "partial", "unfinished", "remakeable"]
_DEPTH = 3
"""Folders between the one that was named and a run directory, at most: runs/<study>/<trial>."""
_NEVER_REMADE = ("train", "base")
"""Stages that cost GPU-hours: what they made is never offered, except where a newer result took its place."""


@dataclass(frozen=True)
class RunSize:
    """One run.

    Attributes:
        directory: of the run.
        state: ``complete``, ``running``, ``partial``, ``damaged`` or ``begun``.
        complete: stages that are complete.
        stages: stages in all.
        bytes: on disk; a file with several names counts once.
        shared_bytes: of these, what other runs have too, by hard links.
    """

    directory: Path
    state: str
    complete: int
    stages: int
    bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Leftover:
    """A folder that can go.

    Attributes:
        path: of the folder.
        stage: whose it is.
        kind: why it can go.
        bytes: what its removal frees.
    """

    path: Path
    stage: str
    kind: Kind
    bytes: int


def find_runs(root: Path) -> list[Path]:
    """Run directories at or below a folder, in order; links are not followed.

    Raises:
        ConfigError: there is no such folder.
    """
    if not root.is_dir():
        raise ConfigError("no such folder of runs", where=root)
    return list(_runs_below(root, _DEPTH))


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder
        return
    if depth == 0:
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from _runs_below(entry, depth - 1)


def measure(run_dir: Path) -> RunSize:
    """State and size of a run."""
    stages = read_status(run_dir).stages
    states = [stage.state for stage in stages]
    complete = states.count("complete")
    state = (
        "running" if _is_locked(run_dir)
        else "damaged" if "damaged" in states
        else "complete" if complete == len(states)
        else "partial" if "partial" in states
        else "begun"
    )  # fmt: skip
    total, own = _sizes([run_dir])
    return RunSize(run_dir, state, complete, len(states), total, total - own)


def leftovers(run_dir: Path, kinds: Sequence[Kind] = ("superseded", "partial")) -> list[Leftover]:
    """What of a run can go; only folders that carry our mark.

    Args:
        run_dir: a run directory.
        kinds: ``superseded`` results that a newer one replaced, ``partial`` work on a stage that is complete,
            ``unfinished`` work on a stage that is not (it would begin anew), ``remakeable`` results that can be made
            again without training.
    """
    found = []
    for folder in sorted(run_dir.iterdir()):
        match = re.fullmatch(r"([a-z]+)(\.partial|\.superseded-\d+)?", folder.name)
        if match is None or match[1] not in STAGE_NAMES or folder.is_symlink() or not folder.is_dir():
            continue
        kind = _kind(run_dir, match[1], match[2] or "")
        if kind in kinds and kind is not None and is_ours(folder, match[1]):
            found.append(Leftover(folder, match[1], kind, _sizes([folder])[1]))
    return found


def _kind(run_dir: Path, stage: str, suffix: str) -> Kind | None:
    manifest = Manifest.load(run_dir / stage)
    complete = manifest is not None and manifest.damage(run_dir / stage) is None
    if suffix.startswith(".superseded"):
        return "superseded" if complete else "unfinished"  # without a newer result it may be the only one
    if suffix == ".partial":
        return "partial" if complete else "unfinished"
    return None if stage in _NEVER_REMADE or not complete else "remakeable"


def remove(run_dir: Path, found: Sequence[Leftover]) -> None:
    """Remove folders of a run, which nobody may be working in.

    Raises:
        ConfigError: another process works in the run, or a folder is not ours any more.
    """
    with locked(run_dir):
        for item in found:
            if item.path.parent != run_dir or item.path.is_symlink() or not is_ours(item.path, item.stage):
                raise ConfigError(
                    "a folder that was to be removed is not what it was", where=item.path,
                    expected="a folder with our manifest or key", fix="look at it; nothing in it was touched",
                )  # fmt: skip
            remove_folder(item.path)


def _is_locked(run_dir: Path) -> bool:
    if not (run_dir / ".lock").is_file():
        return False
    try:
        with locked(run_dir):
            return False
    except ConfigError:
        return True


def _sizes(folders: Sequence[Path]) -> tuple[int, int]:
    """Bytes below folders, each file once; and of these, what no name outside them has."""
    seen: dict[tuple[int, int], tuple[int, int, int]] = {}  # file -> (bytes, names, names seen)
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                try:
                    stat = os.lstat(Path(path) / name)
                except OSError:
                    continue  # removed meanwhile
                _, _, count = seen.get((stat.st_dev, stat.st_ino), (0, 0, 0))
                seen[stat.st_dev, stat.st_ino] = (stat.st_size, stat.st_nlink, count + 1)
    return sum(size for size, _, _ in seen.values()), sum(
        size for size, links, count in seen.values() if count >= links
    )
