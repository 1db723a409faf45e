"""What the reference model says of pairs: files of the stage `reference`.

reference/
  <prefix>.npy      log-probabilities of the answers [pairs, 2] (chosen, rejected) in nats, fp64; NaN where a pair does
                    not fit into a sequence
  reference.json    written last: which weights and which tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
from numpy.typing import NDArray

from tsugiki.experiment.artefacts.contents import Contents
from tsugiki.experiment.artefacts.mixture import Mixture, TokenSource
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.files import atomic_file, sha256_file, sha256_json
from tsugiki.experiment.run.manifest import Manifest

LogProbabilities = NDArray[numpy.float64]


class Reference(Contents):
    """Contents of ``reference/reference.json``."""

    stage = "reference"
    what = "reference"
    file_name = "reference.json"
    model: str
    """Mark of the graft whose weights it is."""
    tokens: str
    """Mark of the tokens, and so of the tokenizer."""


def mark(folder: Path) -> str:
    """What tells a stage's output from another: its manifest's digest, or the sums of its files where it has none."""
    manifest = Manifest.load(folder)
    if manifest is not None:
        return manifest.digest
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_json({str(path.relative_to(folder)): sha256_file(path) for path in files})


def pair_prefixes(mixture: Mixture) -> Iterator[str]:
    """Datasets of pairs, held-out ones included."""
    sources: list[TokenSource] = [*mixture.sources, *mixture.untrained]
    for source in sources:
        if source.kind == "preference":
            yield source.prefix
            if source.heldout_prefix is not None:
                yield source.heldout_prefix


def save(folder: Path, prefix: str, found: LogProbabilities) -> None:
    """Write what the reference says of the pairs of a dataset."""
    with atomic_file(folder / f"{prefix}.npy") as file:
        numpy.save(file, found)


def load(folder: Path, prefix: str) -> LogProbabilities:
    """What the reference says of the pairs of a dataset [pairs, 2].

    Raises:
        DataError: it was not written, or is damaged.
    """
    path = folder / f"{prefix}.npy"
    try:
        found: LogProbabilities = numpy.load(path)
    except (OSError, ValueError) as error:
        raise DataError(
            "cannot read what the reference model says of pairs", where=path, got=error,
            fix="run the stage reference again",
        ) from error  # fmt: skip
    return found


def check(folder: Path, graft: Path, tokens: Path) -> None:
    """Refuse a reference that other weights or other tokens made.

    Raises:
        DataError: it is that of another model or tokenizer, or unreadable.
    """
    found = Reference.load(folder)
    for what, path, theirs in (("model", graft, found.model), ("tokenizer", tokens, found.tokens)):
        if theirs != (own := mark(path)):
            raise DataError(
                f"the reference was made by another {what}",
                where=folder / Reference.file_name,
                got=theirs,
                expected=f"{own}, the mark of {path}",
                fix="run the stage reference again",
            )
