"""From text to the symbols that merges are learned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tsugiki.experiment.errors import DataError
from tsugiki.tokenizer.base.base import BYTE, NORMAL, BaseTokenizer
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.learning.pair_counts import Segments

_CHUNK = 50_000
Splitter = Callable[[str], Sequence[str]]


def count_runs(
    texts: Iterable[str], rule: ScriptRule, normalise: Callable[[str], str], split: Splitter | None = None
) -> Counter[str]:
    """How often each run of target-script characters occurs; memory holds distinct runs only.

    Args:
        texts: documents.
        rule: characters of the language.
        normalise: Unicode normalisation of training text.
        split: word segmenter whose boundaries pieces may not cross.
    """
    runs: Counter[str] = Counter()
    for text in texts:
        # A document begins with the dummy prefix, as if a space stood before it.
        found = rule.runs(" " + normalise(text))
        if split is not None:
            found = [word for run in found for word in split(run)]
        runs.update(found)
    return runs


def build_segments(
    base: BaseTokenizer,
    runs: Mapping[str, Counter[str]],
    weights: Mapping[str, float],
    *,
    damping: float,
    threads: int,
) -> tuple[Segments, list[str], dict[int, int]]:
    """Encode runs with the base and lay them out for :class:`~tsugiki.tokenizer.learning.bpe_trainer.BpeTrainer`.

    Args:
        base: a SentencePiece base.
        runs: counted runs by language.
        weights: weight by language.
        damping: exponent on the counts.
        threads: encoder threads.

    Returns:
        Segments, surfaces of all symbols, and the byte cost of symbols that are characters in bytes.

    Raises:
        DataError: no run at all.
    """
    processor = base.exact_processor()
    surfaces = [piece.piece for piece in base.proto.pieces]
    surfaces += [f"<added_{index}>" for index in range(len(surfaces), base.size)]
    byte_values = np.full(len(surfaces), -1, dtype=np.int32)
    for index, piece in enumerate(base.proto.pieces):
        if piece.type == BYTE:
            byte_values[index] = int(piece.piece[3:5], 16)
        if piece.type != NORMAL:
            surfaces[index] = f"\0{index}"  # never part of a piece
    symbols: list[NDArray[np.int32]] = []
    counts: list[NDArray[np.float32]] = []
    bounds = [0]
    for counter in runs.values():
        length = 0
        for chunk, occurrences in _chunked(counter):
            ids = processor.encode(chunk, out_type=int, num_threads=threads)
            flat, lengths = _flatten(ids)
            flat, lengths = _characters(flat, lengths, byte_values)
            # A segment of one symbol has nothing to merge, unless it is a character in bytes.
            weight = np.repeat(np.asarray(occurrences, dtype=np.float32) ** damping, lengths + 1)
            symbols.append(flat)
            counts.append(weight)
            length += len(flat)
        bounds.append(bounds[-1] + length)
    if not symbols or bounds[-1] == 0:
        raise DataError(
            "the sample holds no text in the scripts of the target languages",
            where="tokenizer.extend.languages",
            fix="check the language codes of corpus.sources",
        )
    joined = np.concatenate(symbols)
    del symbols
    joined, byte_cost = _name_characters(joined, surfaces)
    segments = Segments(joined, np.concatenate(counts), np.array(bounds), list(runs), dict(weights))
    return segments, surfaces, byte_cost


def _chunked(counter: Counter[str]) -> Iterable[tuple[list[str], list[int]]]:
    items = list(counter.items())
    for start in range(0, len(items), _CHUNK):
        part = items[start : start + _CHUNK]
        yield [run for run, _ in part], [count for _, count in part]


def _flatten(ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """[sum of lengths + number of segments] with -1 after each segment, and the lengths."""
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.fromiter(chain.from_iterable(chain(item, (-1,)) for item in ids), dtype=np.int32)
    return flat, lengths


def _characters(
    flat: NDArray[np.int32], lengths: NDArray[np.int64], byte_values: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Replace UTF-8 byte tokens by one symbol per character: minus two minus its code point."""
    values = np.where(flat >= 0, byte_values[flat], -1)
    is_byte = values >= 0
    if not is_byte.any():
        return flat, lengths
    lead = is_byte & ((values & 0xC0) != 0x80)
    at = np.flatnonzero(lead)
    first = values[at]
    size = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
    code = np.where(size == 1, first, first & (0x7F >> size))
    padded = np.concatenate((values, [0, 0, 0]))
    for offset in (1, 2, 3):
        more = size > offset
        code = np.where(more, (code << 6) | (padded[at + offset] & 0x3F), code)
    result = flat.copy()
    result[at] = -2 - code
    keep = ~is_byte | lead
    segment = np.repeat(np.arange(len(lengths)), lengths + 1)
    lengths = lengths - np.bincount(segment[~keep], minlength=len(lengths))
    return result[keep], lengths


def _name_characters(
    symbols: NDArray[np.int32], surfaces: list[str]
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Give characters in bytes their own symbol numbers after the base's; extends ``surfaces``."""
    characters = np.unique(symbols[symbols < -1])
    cost: dict[int, int] = {}
    number = np.zeros(len(characters), dtype=np.int32)
    for offset, value in enumerate(characters.tolist()):
        surface = chr(-2 - value)
        number[offset] = len(surfaces)
        cost[len(surfaces)] = len(surface.encode())
        surfaces.append(surface)
    mask = symbols < -1
    symbols[mask] = number[np.searchsorted(characters, symbols[mask])]
    return symbols, cost
