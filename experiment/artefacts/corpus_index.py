"""The corpus artefact as the other stages see it: ``corpus/index.json`` and its shards.

Shards are ``.jsonl.zst`` files of ``{"id": str, "text": str, "metadata": {…}}``, one document a
line. The held-out documents are chosen by document hash, so they stay the same whatever the
tokenizer is: that is what makes bits per byte comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tsugiki.experiment.artefacts.contents import Contents
from tsugiki.experiment.artefacts.shards import read_shard
from tsugiki.experiment.config.strict import StrictModel

INDEX_NAME = "index.json"
Split = Literal["train", "heldout"]


class CorpusSource(StrictModel):
    """One source of the kept corpus. Paths are relative to the corpus directory."""

    name: str
    language: str
    kind: Literal["text", "parallel", "instruction", "preference"] = "text"
    weight: float = Field(default=1.0, gt=0)
    train: list[str]
    heldout: list[str]
    train_documents: int
    train_bytes: int = Field(description="UTF-8 bytes of text")
    heldout_documents: int
    heldout_bytes: int = Field(description="UTF-8 bytes of text")


class CorpusIndex(Contents):
    """Contents of ``corpus/index.json``."""

    stage = "corpus"
    what = "corpus index"
    file_name = INDEX_NAME
    schema_version: Literal[1] = 1
    sources: list[CorpusSource]

    @property
    def languages(self) -> list[str]:
        """Languages in the order of the configuration, each once."""
        return list(dict.fromkeys(source.language for source in self.sources))

    def documents(
        self,
        corpus_dir: Path,
        split: Split = "train",
        *,
        language: str | None = None,
        source: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Documents in stable order, streamed: ``{"id", "text", "metadata"}``."""
        for entry in self.sources:
            if language is not None and entry.language != language:
                continue
            if source is not None and entry.name != source:
                continue
            for shard in entry.train if split == "train" else entry.heldout:
                yield from read_shard(corpus_dir / shard)
