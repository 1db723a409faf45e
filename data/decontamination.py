"""Keeps evaluation data out of the corpus: overlap of character n-grams.

Texts are compared by their letters, marks and digits only, lower case, compatibility-composed, so
punctuation, spacing and full-width forms hide nothing and no word segmentation is needed. A
document is contaminated when it shares a run of ``ngram_characters`` such characters with a string
of an evaluation set, half as many where the string is mostly in a dense script (a Japanese or Thai
character carries about twice as much as a Latin one). Shorter strings cannot be matched.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from data.config import DecontaminationConfig
from data.ledger import Ledger
from data.streams import TruncatedInput, open_stream
from experiment.config import expand_path
from experiment.errors import ConfigError, DataError

_NOT_COMPARED = regex.compile(r"[^\p{L}\p{M}\p{Nd}]+")
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_EXCERPT_CHARACTERS = 120


def comparable(text: str) -> str:
    """The characters that are compared."""
    return _NOT_COMPARED.sub("", unicodedata.normalize("NFKC", text).lower())


def window_hashes(text: str, length: int) -> NDArray[np.uint64]:
    """Polynomial hashes modulo 2^64 of all windows; shape [characters - length + 1].

    With P[i] = sum of c_j B^j for j < i, a window's hash is (P[i + n] - P[i]) B^-i.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    if len(codes) < length:
        return np.empty(0, np.uint64)
    # Mixing the code points keeps near values (a, b, c) from giving structured sums.
    codes = (codes + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    powers, inverses = _powers(len(codes))
    prefix = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(codes * powers, out=prefix[1:])
    windows = (prefix[length:] - prefix[:-length]) * inverses[: len(codes) - length + 1]
    return windows ^ (windows >> np.uint64(29))


@lru_cache(maxsize=4)
def _powers_of_two_size(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    ones = np.ones(size, np.uint64)
    powers, inverses = ones * _BASE, ones * _INVERSE
    powers[0] = inverses[0] = 1
    return np.cumprod(powers, dtype=np.uint64), np.cumprod(inverses, dtype=np.uint64)


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    powers, inverses = _powers_of_two_size(1 << max(10, (count - 1).bit_length()))
    return powers[:count], inverses[:count]


@dataclass(frozen=True)
class Hit:
    """A document and the evaluation string it contains."""

    document: str
    evaluation_set: str
    item: int
    text: str


class Contamination:
    """N-grams of the evaluation sets.

    Args:
        items: set name, number and text of every string.
        length: characters of a match; half for dense scripts.
    """

    def __init__(self, items: Sequence[tuple[str, int, str]], length: int) -> None:
        self.items = [(name, number, comparable(text)) for name, number, text in items]
        hashes: dict[int, list[NDArray[np.uint64]]] = {}
        owners: dict[int, list[NDArray[np.int64]]] = {}
        for position, (_, _, text) in enumerate(self.items):
            dense = 2 * len(_DENSE.findall(text)) > len(text)
            size = max(1, length // 2) if dense else length
            windows = window_hashes(text, size)
            hashes.setdefault(size, []).append(windows)
            owners.setdefault(size, []).append(np.full(len(windows), position))
        self._tables: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}
        for size in sorted(hashes):
            values, owner = np.concatenate(hashes[size]), np.concatenate(owners[size])
            unique, first = np.unique(values, return_index=True)
            if len(unique):
                self._tables[size] = (unique, owner[first])

    def find(self, text: str) -> tuple[str, int, str] | None:
        """Set, item number and matched characters of the first match, None when there is none."""
        plain = comparable(text)
        for size, (known, owner) in self._tables.items():
            windows = window_hashes(plain, size)
            if not len(windows):
                continue
            places = np.minimum(np.searchsorted(known, windows), len(known) - 1)
            for start in np.flatnonzero(known[places] == windows):
                match = plain[start : start + size]
                name, number, item = self.items[owner[places[start]]]
                if match in item:  # equal hashes of different texts: practically never
                    return name, number, match
        return None


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
            "no such evaluation set", where="corpus.decontamination.paths", got=pattern,
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

    def __init__(self, config: DecontaminationConfig, ledger: Ledger) -> None:
        super().__init__()
        self.config = config
        self.ledger = ledger

    def run(
        self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Pass on what is clean."""
        known = load_contamination(tuple(self.config.paths), self.config.ngram_characters)
        for document in data:
            hit = known.find(_all_text(document))
            if hit is None:
                yield document
                continue
            name, number, text = hit
            self.ledger.hits.append(
                {"id": document.id, "evaluation_set": name, "item": number, "match": text}
            )
            if self.config.action == "report":
                yield document
            else:
                detail = f"{name}, item {number}: {text[:_EXCERPT_CHARACTERS]}"
                self.ledger.drop(f"{self.name}.{name}", document, detail)


def _all_text(document: Document) -> str:
    parts = [document.text, *(item["content"] for item in document.metadata.get("messages", ()))]
    return "\n".join(parts)
