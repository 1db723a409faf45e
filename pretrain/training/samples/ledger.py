"""What earlier runs have read: how often each document of a source was, so that a run which goes on leaves it out.

    read_before/
      <source>.npy    [documents] passes over each document before this run, uint16
      ledger.json     written last: what of each source is left out, or why nothing is

A document counts as read when any of its tokens was in a consumed sample; at most two documents a sample are cut so.
Documents that were read less often than others of their source come first; then all come again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.files import sha256_file, write_json_atomically
from tsugiki.pretrain.training.continuing import Origin

FOLDER_NAME = "read_before"
LEDGER_NAME = "ledger.json"
Passes = Mapping[str, NDArray[numpy.uint16]]


def load_passes(train_dir: Path) -> dict[str, NDArray[numpy.uint16]]:
    """Passes over the documents of each source before a run; empty for one that began with nothing read."""
    folder = train_dir / FOLDER_NAME
    if not (folder / LEDGER_NAME).is_file():
        return {}
    return {path.stem: numpy.load(path) for path in sorted(folder.glob("*.npy"))}


def write_passes(train_dir: Path, passes: Passes, said: Mapping[str, str]) -> None:
    """Keep them with the run, for itself when it is interrupted and for runs that continue from it."""
    folder = train_dir / FOLDER_NAME
    folder.mkdir(parents=True, exist_ok=True)
    for name, counts in passes.items():
        numpy.save(folder / f"{name}.npy", counts)
    write_json_atomically(folder / LEDGER_NAME, dict(said), indent=1)


def unread(counts: NDArray[numpy.uint16]) -> NDArray[numpy.int32]:
    """Documents that were read less often than others; none when all were as often."""
    if not len(counts) or counts.min() == counts.max():
        return numpy.empty(0, numpy.int32)
    return numpy.flatnonzero(counts < counts.max()).astype(numpy.int32)


def documents_read(dataset: Any, samples: int, documents: int) -> NDArray[numpy.uint16]:
    """Passes over each document in the first samples of a GPTDataset.

    Its document index lists every document once an epoch; a sample covers a range of that list.
    """
    chosen = numpy.asarray(dataset.shuffle_index[:samples]).astype(numpy.int64)
    begins = numpy.asarray(dataset.sample_index)[chosen, 0].astype(numpy.int64)
    ends = numpy.asarray(dataset.sample_index)[chosen + 1, 0].astype(numpy.int64)
    edges = numpy.zeros(len(dataset.document_index) + 1, numpy.int64)
    numpy.add.at(edges, begins, 1)
    numpy.add.at(edges, ends + 1, -1)
    touched = numpy.asarray(dataset.document_index)[numpy.cumsum(edges)[:-1] > 0]
    return numpy.bincount(touched, minlength=documents).astype(numpy.uint16)


def comparable_sources(
    origin: Origin, mixture: Mixture, tokens_dir: Path
) -> tuple[Mixture | None, dict[str, str]]:
    """Which sources of this mixture are the same documents as in the run that is continued.

    Returns:
        That run's mixture (None when its order cannot be known again), and why a source is not left out, by name.
    """
    names = [source.name for source in mixture.sources]
    theirs_dir = origin.run_dir / "tokens"
    data = origin.facts.get("data")
    if data is None:
        return None, dict.fromkeys(names, "its checkpoint does not say how its samples were ordered")
    path = theirs_dir / Mixture.file_name
    if not path.is_file() or sha256_file(path) != data["mixture_sha256"]:
        return None, dict.fromkeys(names, f"{path} is not the one it was trained on")
    theirs = Mixture.load(theirs_dir)
    prefixes = {source.name: source.prefix for source in theirs.sources}
    reasons = {}
    for source in mixture.sources:
        if source.name not in prefixes:
            continue  # it was not read: there is nothing to leave out
        # The index holds the length of every document: the same lengths in the same order are the same documents.
        mine, other = (
            folder / f"{prefix}.idx"
            for folder, prefix in ((tokens_dir, source.prefix), (theirs_dir, prefixes[source.name]))
        )
        if not other.is_file() or sha256_file(mine) != sha256_file(other):
            reasons[source.name] = "its documents are others than those of the run that is continued"
    return theirs, reasons


def agreed(work: Any) -> Any:
    """What rank 0 finds, on every rank; an error of rank 0 ends it, and the launcher the others."""
    held = [work() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def said(train_dir: Path) -> dict[str, str]:
    """What of each source is left out, or why nothing is; for the log."""
    try:
        lines: dict[str, str] = json.loads(
            (train_dir / FOLDER_NAME / LEDGER_NAME).read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return lines
