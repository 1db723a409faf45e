"""What becomes of each document of a shard after the first pass, and why: one array a shard, in the documents' order.

Exact deduplication writes the first version, the choice of held-out documents, which comes after MinHash, the last one;
the pass that writes the corpus looks nothing up again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from tsugiki.data.common.stats import DocumentStats
from tsugiki.experiment.files import atomic_file


class Verdict(IntEnum):
    """Why a document is dropped, or where it goes."""

    TRAIN = 0
    HELDOUT = 1
    REPEATED_TEXT = 2
    REPEATED_URL = 3
    NEAR_DUPLICATE = 4


EXACT = (Verdict.REPEATED_TEXT, Verdict.REPEATED_URL)
RULES = {
    Verdict.REPEATED_TEXT: "duplicate.text",
    Verdict.REPEATED_URL: "duplicate.url",
    Verdict.NEAR_DUPLICATE: "duplicate.near",
}
"""What the report calls the verdicts that drop a document."""

VERDICT_TYPE = np.dtype([("verdict", "u1"), ("cluster_size", "<u4")])
"""Verdict, and how many near-duplicates the document stands for, itself included. 5 bytes a document."""


def save(path: Path, verdicts: NDArray[np.void]) -> None:
    """Write the verdicts of a shard."""
    with atomic_file(path) as file:
        np.save(file, verdicts)


def marked(documents: Iterable[Document], path: Path) -> Iterator[Document]:
    """The documents of a shard with ``_verdict`` and ``_cluster_size`` among their metadata.

    Raises:
        ValueError: there are not as many documents as verdicts.
    """
    for document, row in zip(documents, np.load(path, mmap_mode="r"), strict=True):
        document.metadata["_verdict"], document.metadata["_cluster_size"] = row.item()
        yield document


def without(
    documents: Iterable[Document], verdicts: Collection[int], stats: DocumentStats | None = None
) -> Iterator[Document]:
    """Drop the documents whose ``_verdict`` is one of these, and count them where there are stats."""
    for document in documents:
        verdict = document.metadata["_verdict"]
        if verdict not in verdicts:
            yield document
        elif stats is not None:
            stats.drop(RULES[verdict], document)
