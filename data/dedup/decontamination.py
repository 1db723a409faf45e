"""Keeps evaluation data out of the corpus: overlap of character n-grams.

Texts are compared by their letters, marks and digits only, lower case, compatibility-composed, so
punctuation, spacing and full-width forms hide nothing and no word segmentation is needed. A
document is contaminated when it shares a run of ``ngram_characters`` such characters with a string
of an evaluation set, half as many where these are mostly Chinese, Japanese or Korean (a
character there carries about twice as much as a Latin one; a Thai or Khmer one does not: with half
as many, titles of ministries made up nearly all hits). Shorter strings cannot be matched.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.common.streams import open_stream
from tsugiki.data.config import DecontaminationConfig
from tsugiki.experiment.artefacts.shards import TruncatedInput
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.text.rolling_hash import SpanHasher

_NOT_COMPARED = regex.compile(r"[^\p{L}\p{M}\p{Nd}]+")
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_EXCERPT_CHARACTERS = 120


def comparable(text: str) -> str:
    """The characters that are compared."""
    return _NOT_COMPARED.sub("", unicodedata.normalize("NFKC", text).lower())


class Contamination:
    """N-grams of the evaluation sets.

    Args:
        items: set name, number and text of every string.
        length: characters of a match; half for Chinese, Japanese and Korean.
    """

    def __init__(self, items: Sequence[tuple[str, int, str]], length: int) -> None:
        self.items = [(name, number, comparable(text)) for name, number, text in items]
        hashes: dict[int, list[NDArray[np.uint64]]] = {}
        owners: dict[int, list[NDArray[np.int64]]] = {}
        for position, (_, _, text) in enumerate(self.items):
            hasher = SpanHasher(text)
            for size, windows in (
                (length, hasher.windows(length)),
                (short := max(1, length // 2), hasher.windows(short)[_mostly_dense(text, short)]),
            ):
                hashes.setdefault(size, []).append(windows)
                owners.setdefault(size, []).append(np.full(len(windows), position))
        self._tables: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = {}
        for size in sorted(hashes):
            values, owner = np.concatenate(hashes[size]), np.concatenate(owners[size])
            order = np.argsort(values, kind="stable")
            unique, first = np.unique(values[order], return_index=True)
            if len(unique):
                self._tables[size] = (unique, np.append(first, len(values)), owner[order])

    @property
    def too_short(self) -> int:
        """Items without a run that is long enough to be looked for."""
        found = [owner for _, _, owner in self._tables.values()]
        return len(self.items) - (len(np.unique(np.concatenate(found))) if found else 0)

    def find(self, text: str) -> list[tuple[str, int, str]]:
        """Set, item number and first matched characters of every item that the text shares a run with."""
        plain = comparable(text)
        hasher = SpanHasher(plain)
        found: dict[int, str] = {}
        for size, (known, first, owner) in self._tables.items():
            windows = hasher.windows(size)
            if not len(windows):
                continue
            places = np.minimum(np.searchsorted(known, windows), len(known) - 1)
            starts = np.flatnonzero(known[places] == windows)
            for place, start in zip(*np.unique(places[starts], return_index=True), strict=True):
                match = plain[starts[start] : starts[start] + size]
                for position in owner[first[place] : first[place + 1]].tolist():
                    # equal hashes of different texts: practically never
                    if position not in found and match in self.items[position][2]:
                        found[position] = match
        return [(*self.items[position][:2], match) for position, match in sorted(found.items())]


def _mostly_dense(text: str, size: int) -> NDArray[np.bool_]:
    """Which windows of a size are at least half Chinese, Japanese or Korean; shape as of the windows."""
    dense = np.zeros(len(text) + 1, np.int64)
    dense[[match.end() for match in _DENSE.finditer(text)]] = 1
    counts = np.cumsum(dense)  # dense characters before each place
    return 2 * (counts[size:] - counts[: max(0, len(counts) - size)]) >= size


@lru_cache(maxsize=1)
def load_contamination(paths: tuple[str, ...], length: int) -> Contamination:
    """Read evaluation sets; cached per process.

    Raises:
        ConfigError: no such file.
        DataError: a file cannot be read.
    """
    items: list[tuple[str, int, str]] = []
    for pattern in paths:
        files = _expand(pattern)
        for file in files:
            items.extend((file.name, number, text) for number, text in enumerate(read_strings(file)))
    return Contamination(items, length)


def _expand(pattern: str) -> list[Path]:
    path = expand_path(pattern)
    if path.is_dir():
        found = sorted(item for item in path.rglob("*") if item.is_file())
    elif path.is_file():
        found = [path]
    else:
        found = sorted(item for item in path.parent.glob(path.name) if item.is_file())
    if not found:
        raise ConfigError(
            "no such evaluation set",
            where="corpus.decontamination.paths",
            got=pattern,
            expected="a file, a folder or a glob",
        )
    return found


def read_strings(path: Path) -> Iterator[str]:
    """All texts of an evaluation set: JSON, JSONL, CSV/TSV cells or lines of text.

    Raises:
        DataError: unreadable or not UTF-8.
    """
    try:
        with open_stream(str(path)) as stream:
            text = stream.read().decode("utf-8-sig")
    except (OSError, TruncatedInput, UnicodeDecodeError) as error:
        raise DataError("cannot read an evaluation set", where=path, got=error) from error
    kinds = [part.lower() for part in path.suffixes]
    if ".json" in kinds or ".jsonl" in kinds:
        try:
            values = [json.loads(text)]
        except ValueError:
            try:
                values = [json.loads(line) for line in text.splitlines() if line.strip()]
            except ValueError as error:
                raise DataError("an evaluation set is not JSON", where=path, got=error) from error
        for value in values:
            yield from _strings(value)
    elif ".tsv" in kinds or ".csv" in kinds:
        csv.field_size_limit(1 << 24)
        for row in csv.reader(io.StringIO(text), delimiter="\t" if ".tsv" in kinds else ","):
            yield from row
    else:
        yield from text.splitlines()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


class Decontaminator(PipelineStep):
    """Drops (or reports) documents that contain evaluation data; every hit is recorded."""

    name = "contaminated"
    type = "filter"

    def __init__(self, config: DecontaminationConfig, stats: DocumentStats) -> None:
        super().__init__()
        self.config = config
        self.counts = stats

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Pass on what is clean."""
        known = load_contamination(tuple(self.config.paths), self.config.ngram_characters)
        for document in data:
            found = known.find(_all_text(document))
            if not found:
                yield document
                continue
            self.counts.count("contaminated_documents")
            self.counts.count("evaluation_hits", len(found))
            for name, number, text in found:
                self.counts.hits.append(
                    {"id": document.id, "evaluation_set": name, "item": number, "match": text}
                )
            if self.config.action == "report":
                yield document
            else:
                name, number, text = found[0]
                detail = f"{name}, item {number}: {text[:_EXCERPT_CHARACTERS]}"
                if len(found) > 1:
                    detail += f" (and {len(found) - 1} more items)"
                self.counts.drop(f"{self.name}.{name}", document, detail)


def _all_text(document: Document) -> str:
    messages = (*document.metadata.get("messages", ()), *document.metadata.get("rejected", ()))
    parts = [document.text, *(item["content"] for item in messages)]
    return "\n".join(parts)
