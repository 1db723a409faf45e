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

from tsugiki.experiment.artefacts.shards import read_shard
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import DataError

INDEX_NAME = "index.json"
Split = Literal["train", "heldout"]


class CorpusSource(StrictModel):
    """One source of the kept corpus. Paths are relative to the corpus directory."""

    name: str
    language: str
    kind: Literal["text", "parallel", "instruction"] = "text"
    weight: float = Field(default=1.0, gt=0)
    train: list[str]
    heldout: list[str]
    train_documents: int
    train_bytes: int = Field(description="UTF-8 bytes of text")
    heldout_documents: int
    heldout_bytes: int = Field(description="UTF-8 bytes of text")


class CorpusIndex(StrictModel):
    """Contents of ``corpus/index.json``."""

    schema_version: Literal[1] = 1
    sources: list[CorpusSource]

    @classmethod
    def load(cls, corpus_dir: Path) -> CorpusIndex:
        """Read the index of a corpus directory.

        Raises:
            DataError: the directory holds no index, or one of another version.
        """
        path = corpus_dir / INDEX_NAME
        if not path.is_file():
            raise DataError(
                "no corpus here",
                where=path,
                expected="the output of the corpus stage",
                fix="run `tsugiki corpus CONFIG` first",
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise DataError("unreadable corpus index", where=path, got=str(error)) from error

    def save(self, corpus_dir: Path) -> None:
        """Write ``index.json``."""
        (corpus_dir / INDEX_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

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
