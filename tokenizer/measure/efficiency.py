"""Measures of how well a tokenizer fits a text, for any tokenizer that loads and any text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.batches import text_batches
from tsugiki.experiment.text.cached_bpe import CachedBPE, Encoder, PlainEncoder, can_be_cut
from tsugiki.experiment.text.hf_tokenizer import read_json
from tsugiki.experiment.text.tokenizer_files import open_tokenizer
from tsugiki.tokenizer.base.base import is_byte_level
from tsugiki.tokenizer.base.byte_level import byte_surface
from tsugiki.tokenizer.base.words import word_splitter

_BATCH_CHARACTERS = 1_000_000
_WORD_SAMPLE_BYTES = 100_000
"""Words are counted on so much of a text: segmenters are far slower than tokenizers."""


@dataclass
class Measured:
    """A tokenizer on one text.

    Attributes:
        metrics: numbers for the report, see docs/tokenizer.md.
        tokens_per_line: tokens of every line.
        usage: how often each id occurred.
        words: name of the word segmenter.
    """

    metrics: dict[str, float]
    tokens_per_line: NDArray[np.int32]
    usage: NDArray[np.int64]
    words: str


class AnyTokenizer:
    """A tokenizer from a Hugging Face directory, a ``tokenizer.json`` or a SentencePiece ``.model``.

    Attributes:
        name: name in the report.
        size: rows of the vocabulary.
        surfaces: surface of every id.
        config: ``config.json`` beside it, where there is one.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        opened = open_tokenizer(path, special_tokens_in_text=False)
        self._tokenizer: Any = opened.fast
        document = opened.document if opened.document is not None else json.loads(opened.fast.to_str())
        self.config = read_json(path / "config.json") if path.is_dir() else None
        self._can_be_cut = can_be_cut(document)
        self.size = opened.size
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.surfaces = [""] * self.size
        for surface, index in vocabulary.items():
            self.surfaces[index] = surface
        self.byte_level = is_byte_level(document)
        self.is_byte = np.array([_spells_bytes(surface, self.byte_level) for surface in self.surfaces])

    def encode(self, lines: Sequence[str]) -> list[Any]:
        """Encodings with offsets, without special tokens."""
        return list(self._tokenizer.encode_batch(list(lines), add_special_tokens=False))

    def ids(self, lines: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of all lines one after another, and how many each line has; no special tokens."""
        return self._encoder.encode(lines)

    @cached_property
    def _encoder(self) -> Encoder:
        return CachedBPE(self._tokenizer) if self._can_be_cut else PlainEncoder(self._tokenizer)

    def text_of(self, index: int) -> str:
        """The text that a token stands for."""
        if self.byte_level:
            return byte_surface(self.surfaces[index]).decode("utf-8", errors="replace")
        return self.surfaces[index].replace("▁", " ")


def _spells_bytes(surface: str, byte_level: bool) -> bool:
    """Whether a token is part of a character only."""
    if not byte_level:
        return len(surface) == 6 and surface.startswith("<0x") and surface.endswith(">")
    try:
        byte_surface(surface).decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def measure(
    tokenizer: AnyTokenizer, lines: Sequence[str], language: str, words: WordSample | None = None
) -> Measured:
    """All measures of a tokenizer on the lines of a text.

    Args:
        tokenizer: any.
        lines: the text.
        language: chooses the word segmenter.
        words: what :func:`sample_words` gives for these lines; for several tokenizers it is made once.

    Raises:
        DataError: the text is empty.
    """
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"the text for '{language}' is empty", fix="give a file with at least one line")
    words = words or sample_words(lines, language)
    usage = np.zeros(tokenizer.size, dtype=np.int64)
    per_line: list[NDArray[np.int64]] = []
    for batch in text_batches(lines, _BATCH_CHARACTERS):
        ids, counts = tokenizer.ids(batch)
        per_line.append(counts)
        usage += np.bincount(ids, minlength=tokenizer.size)
    tokens = int(usage.sum())
    characters = sum(map(len, lines))
    size = sum(len(line.encode()) for line in lines)
    metrics: dict[str, float] = {
        "tokens": tokens,
        "characters": characters,
        "bytes": size,
        "lines": len(lines),
        "tokens_per_character": tokens / characters,
        "characters_per_token": characters / tokens,
        "bytes_per_token": size / tokens,
        "byte_fallback_rate": float(usage[tokenizer.is_byte].sum()) / tokens,
    }
    tokens_per_line = np.concatenate(per_line).astype(np.int32)
    return Measured(metrics | _word_metrics(tokenizer, words), tokens_per_line, usage, words.segmenter)


@dataclass(frozen=True)
class WordSample:
    """The words of the beginning of a text.

    Attributes:
        lines: those lines that hold a word.
        spans: [W, 2] start and end of each word, in characters of the lines joined by newlines.
        segmenter: name of the word segmenter.
    """

    lines: list[str]
    spans: NDArray[np.int64]
    segmenter: str


def sample_words(lines: Sequence[str], language: str) -> WordSample:
    """Cut the beginning of a text into words."""
    splitter = word_splitter(language)
    kept: list[str] = []
    spans = [np.empty((0, 2), dtype=np.int64)]
    size = start = 0
    for line in lines:
        found = word_spans(line, splitter.split(line))
        if len(found):
            kept.append(line)
            spans.append(found + start)
            start += len(line) + 1
        size += len(line.encode())
        if size >= _WORD_SAMPLE_BYTES:
            break
    return WordSample(kept, np.concatenate(spans), splitter.name)


def _word_metrics(tokenizer: AnyTokenizer, words: WordSample) -> dict[str, float]:
    """Fertility and word integrity, from the offsets of tokens against the spans of words."""
    if not words.lines:
        return {}
    found: list[NDArray[np.int64]] = []
    start = 0
    for line, encoding in zip(words.lines, tokenizer.encode(words.lines), strict=True):
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int64)
        found.append(offsets.reshape(-1, 2) + start)
        start += len(line) + 1
    tokens = np.concatenate(found)  # [T, 2]
    overlapping = np.searchsorted(tokens[:, 0], words.spans[:, 1], side="left") - np.searchsorted(
        tokens[:, 1], words.spans[:, 0], side="right"
    )
    count = len(words.spans)
    single = int((overlapping <= 1).sum())
    return {
        "words_sampled": count,
        "fertility": len(tokens) / count,
        "continued_words": 1 - single / count,
        "single_token_retention": single / count,
    }


def word_spans(line: str, words: Sequence[str]) -> NDArray[np.int64]:
    """[W, 2] start and end of the words that hold a letter or digit, in characters."""
    spans: list[tuple[int, int]] = []
    end = 0
    for word in words:
        at = line.find(word, end)
        if at < 0 or not word:
            continue
        end = at + len(word)
        stripped = word.strip()
        if any(character.isalnum() for character in stripped):
            start = at + word.index(stripped)
            spans.append((start, start + len(stripped)))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def read_lines(paths: Sequence[Path], limit_bytes: int | None = None) -> list[str]:
    """Non-empty lines of UTF-8 text, ``.jsonl`` and ``.jsonl.zst`` files (their ``text``).

    Args:
        paths: files, in order.
        limit_bytes: stop after so many UTF-8 bytes.

    Raises:
        DataError: a file is missing or not UTF-8.
    """
    lines: list[str] = []
    left = limit_bytes if limit_bytes is not None else 1 << 62
    for path in paths:
        for line in _lines_of(path):
            if not line.strip():
                continue
            left -= len(line.encode())
            if left < 0:
                return lines
            lines.append(line)
    return lines


def _lines_of(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise DataError("no such text file", where=path)
    if path.name.endswith(".jsonl.zst"):
        from tsugiki.experiment.artefacts.shards import read_shard

        for record in read_shard(path):
            yield from str(record.get("text", "")).splitlines()
        return
    number = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in file:
                number += 1
                if path.suffix == ".jsonl":
                    yield from str(json.loads(line).get("text", "")).splitlines()
                else:
                    yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            "a text file is not UTF-8",
            where=f"{path}, after line {number}",
            got=error,
            fix="convert it: iconv -f SHIFT_JIS -t UTF-8 FILE",
        ) from error
    except ValueError as error:
        raise DataError("not JSON lines", where=f"{path}, line {number}", got=error) from error
