"""Stages that several runs have in common: told by their keys, made in one run, hard-linked into the others.

``shared.json`` in a run directory names, for some stages, another run directory where the stage may have been made.
It is looked at only before a stage would run, and only a whole stage with the very same key is taken: a run with a
wrong ``shared.json`` makes its stages itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from tsugiki.experiment.errors import EnvironmentError_
from tsugiki.experiment.files import write_json_atomically
from tsugiki.experiment.run.manifest import MANIFEST_NAME, Manifest

SHARED_NAME = "shared.json"
"""File of a run directory: stage -> run directory that makes it, relative to this one."""


def write_shared(run_dir: Path, makers: Mapping[str, Path]) -> None:
    """Say where stages of a run are made.

    Args:
        run_dir: run that takes them.
        makers: stage -> run directory that makes it.
    """
    relative = {name: os.path.relpath(maker, run_dir) for name, maker in makers.items()}
    write_json_atomically(run_dir / SHARED_NAME, relative)


def shared_stages(run_dir: Path) -> dict[str, Path]:
    """Stage -> run directory that makes it; empty without the file or when it cannot be read."""
    try:
        found = json.loads((run_dir / SHARED_NAME).read_bytes())
        return {str(name): run_dir / str(maker) for name, maker in found.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def made_elsewhere(run_dir: Path, name: str, key: str) -> Path | None:
    """The whole stage of that key in the run that ``shared.json`` names, None where there is none."""
    maker = shared_stages(run_dir).get(name)
    if maker is None:
        return None
    manifest = Manifest.load(maker / name)
    if manifest is None or manifest.key != key or manifest.damage(maker / name):
        return None
    return maker / name


def link_stage(made: Path, folder: Path) -> None:
    """Hard-link the files of a whole stage into a folder, the manifest last; no byte is copied.

    Raises:
        EnvironmentError_: the file system has no hard links, or the two lie on different ones.
    """
    manifest = Manifest.load(made)
    assert manifest is not None  # the caller found it whole
    for name in [*manifest.outputs, MANIFEST_NAME]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(made / name)
        except OSError as error:
            raise EnvironmentError_(
                "a shared stage cannot be hard-linked",
                where=target,
                got=error.strerror,
                expected=f"a file system with hard links that also holds {made}",
                fix="put the runs on one such file system, or remove the run's shared.json to make the stage there",
            ) from error
