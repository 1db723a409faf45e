"""Texts put together, so that a library is called once for many and memory holds few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def text_batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Lists of texts in order, each ended by the text that brings it to so many characters."""
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= characters:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
