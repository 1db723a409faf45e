"""How often each pair of neighbouring symbols stands in the training text, kept exact while pairs are joined.

The words are those of :mod:`tsugiki.tokenizer.learning.bpe_trainer`. N: positions, L: languages.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHIFT = 22  # symbols per vocabulary: 4 million
_DEAD_SHARE = 0.4
_FLOOR = 1e-12

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass
class Segments:
    """Training text as symbols.

    Attributes:
        symbols: [N] symbol at each position, -1 between segments.
        counts: [N] how often the segment of a position occurs (after damping).
        bounds: [L + 1] positions where the languages begin; segments are ordered by language.
        languages: names, in that order.
        weights: importance of each language.
    """

    symbols: Ints
    counts: NDArray[np.float32]
    bounds: NDArray[np.int64]
    languages: Sequence[str]
    weights: Mapping[str, float]


class PairCounts:
    """Symbols of the training text with the weight of every pair, and the heap of candidates.

    Args:
        segments: training text; its arrays are changed in place.
        surfaces: surface of every symbol; the caller appends new ones.
        byte_cost: tokens that a character symbol costs as long as it is spelled in bytes.
        character_factor: how much more a token saved by a character counts than one saved by a merge.

    Attributes:
        symbols: [N] symbol at each position, -1 between segments, -2 where one was joined to its neighbour.
        counts: [N] how often the segment of a position occurs.
        weights: [N] the same, times what a token of the language counts.
        tokens: [L] tokens of each language, characters in bytes counted as so many.
        unknown: tokens by character symbol that is still spelled in bytes.
        refused: keys of pairs that are no candidates any more.
        dead: positions joined away since the last :meth:`rebuild`.
    """

    def __init__(
        self,
        segments: Segments,
        surfaces: list[str],
        byte_cost: Mapping[int, int],
        character_factor: float,
    ) -> None:
        self.symbols = segments.symbols
        self.counts = segments.counts
        self._bounds = segments.bounds
        self._languages = list(segments.languages)
        self._surfaces = surfaces
        self.unknown = dict(byte_cost)
        self._character_factor = character_factor
        size = len(self.symbols)
        self._next = np.arange(1, size + 1, dtype=np.int32)
        self._previous = np.arange(-1, size - 1, dtype=np.int32)
        self._mark = np.zeros(size, dtype=bool)
        self.refused: set[int] = set()
        self.tokens = self._count_tokens()

    @property
    def mostly_dead(self) -> bool:
        """Whether so many positions were joined away that a rebuild pays."""
        return self.dead > _DEAD_SHARE * len(self.symbols)

    def occurrences(self, symbol: int) -> Ints:
        """Positions of a character that is spelled in bytes."""
        return self._occurrences.get(symbol, np.empty(0, dtype=np.int32))

    def _count_tokens(self) -> Floats:
        """[L] tokens of each language, characters in bytes counted as so many."""
        cost = np.ones(len(self._surfaces) + 1)
        cost[-1] = 0  # symbols[-1]: between segments
        for symbol, tokens in self.unknown.items():
            cost[symbol] = tokens
        result = np.zeros(len(self._languages))
        for language, (start, end) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
            symbols = self.symbols[start:end]
            live = symbols != -2
            result[language] = float((cost[symbols[live]] * self.counts[start:end][live]).sum())
        return result

    def rebuild(self, scale: Floats) -> None:
        """Drop dead positions and count every pair anew.

        Args:
            scale: [L] what a token of each language counts.
        """
        self._compact()
        self.dead = 0
        self.weights = self.counts.astype(np.float32)
        for language, (start, end) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
            self.weights[start:end] *= np.float32(scale[language])
        known = np.ones(len(self._surfaces) + 1, dtype=bool)
        known[-1] = False
        known[list(self.unknown)] = False
        usable = known[self.symbols]
        left = np.flatnonzero(usable[:-1] & usable[1:]).astype(np.int32)
        keys = (self.symbols[left].astype(np.int64) << _SHIFT) | self.symbols[left + 1]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        self._index = left[order]
        starts = _group_starts(keys)
        self._index_keys = keys[starts]
        self._index_starts = np.append(starts, len(keys))
        sums = (
            np.add.reduceat(self.weights[self._index].astype(np.float64), starts) if len(starts) else starts
        )
        self._sums: dict[int, float] = dict(zip(self._index_keys.tolist(), sums.tolist(), strict=True))
        self._heap = [(-total, key) for key, total in self._sums.items() if key not in self.refused]
        self._occurrences: dict[int, Ints] = {}
        self._initial = len(self._surfaces)
        self._push_characters()
        heapq.heapify(self._heap)

    def _compact(self) -> None:
        live = self.symbols != -2
        if not live.all():
            shift = np.concatenate(([0], np.cumsum(live)))
            self._bounds = shift[self._bounds]
            self.symbols = self.symbols[live]
            self.counts = self.counts[live]
        size = len(self.symbols)
        self._next = np.arange(1, size + 1, dtype=np.int32)
        self._previous = np.arange(-1, size - 1, dtype=np.int32)
        self._mark = np.zeros(size, dtype=bool)

    def _push_characters(self) -> None:
        """Characters in bytes compete with merges: adding one saves all its bytes but one."""
        if not self.unknown:
            return
        is_unknown = np.zeros(len(self._surfaces) + 1, dtype=bool)
        is_unknown[list(self.unknown)] = True
        positions = np.flatnonzero(is_unknown[self.symbols]).astype(np.int32)
        symbols = self.symbols[positions]
        order = np.argsort(symbols, kind="stable")
        positions, symbols = positions[order], symbols[order]
        starts = _group_starts(symbols)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(symbols)], strict=True):
            symbol = int(symbols[start])
            self._occurrences[symbol] = positions[start:end]
            saved = float(self.weights[positions[start:end]].sum()) * (self.unknown[symbol] - 1)
            saved *= self._character_factor
            self._heap.append((-saved, -symbol - 1))

    def pop(self) -> tuple[int, float] | None:
        """The best candidate that still stands: a pair key, or minus symbol minus one for a character."""
        while self._heap:
            negative, key = heapq.heappop(self._heap)
            if key < 0:
                return key, -negative
            current = self._sums.get(key, 0.0)
            if current <= _FLOOR or key in self.refused:
                continue
            if current < -negative * (1 - 1e-9):
                heapq.heappush(self._heap, (-current, key))
                continue
            return key, current
        return None

    def positions(self, left: int, right: int) -> Ints:
        """Positions at which a pair stands now."""
        symbols, following = self.symbols, self._next
        found: list[Ints] = []
        new_left, new_right = left >= self._initial, right >= self._initial
        if not new_left and not new_right:
            slot = int(np.searchsorted(self._index_keys, (left << _SHIFT) | right))
            if slot < len(self._index_keys) and self._index_keys[slot] == (left << _SHIFT) | right:
                found.append(self._index[self._index_starts[slot] : self._index_starts[slot + 1]])
        use_left = left in self._occurrences and not (
            new_right and new_left and len(self._occurrences[right]) < len(self._occurrences[left])
        )
        if use_left and not (new_right and not new_left):
            alive = self._occurrences[left]
            alive = self._occurrences[left] = alive[symbols[alive] == left]
            found.append(alive)
        if right in self._occurrences and not (new_left and use_left):
            alive = self._occurrences[right]
            alive = self._occurrences[right] = alive[symbols[alive] == right]
            found.append(self._previous[alive])
        if not found:
            return np.empty(0, dtype=np.int32)
        positions = found[0] if len(found) == 1 else np.unique(np.concatenate(found))
        positions = positions[positions >= 0]
        positions = positions[(symbols[positions] == left) & (symbols[following[positions]] == right)]
        if left == right and len(positions) > 1:
            positions = self._without_overlaps(np.sort(positions))
        return positions

    def _without_overlaps(self, positions: Ints) -> Ints:
        """Of x x x, the pair at the left wins."""
        end = -1
        kept = []
        for position in positions.tolist():
            if position >= end:
                kept.append(position)
                end = int(self._next[int(self._next[position])])
        return np.array(kept, dtype=np.int32)

    def by_language(self, positions: Ints, weights: NDArray[np.float32]) -> Floats:
        """[L] sum of the weights (or counts) at the positions of each language."""
        owner = np.searchsorted(self._bounds, positions, side="right") - 1
        sums = np.bincount(owner, weights=weights[positions], minlength=len(self._languages))
        return sums.astype(np.float64)

    def join(self, pairs: Sequence[tuple[int, int]], symbol: int) -> None:
        """Replace pairs by a symbol everywhere."""
        made: list[Ints] = []
        for left, right in pairs:
            if left in self.unknown or right in self.unknown:
                continue
            self._sums.pop((left << _SHIFT) | right, None)
            positions = self.positions(left, right)
            if len(positions):
                self._replace(positions, symbol)
                made.append(positions)
        if made:
            old = self._occurrences.get(symbol)
            joined = np.concatenate([*([] if old is None else [old]), *made])
            self._occurrences[symbol] = joined
        elif symbol not in self._occurrences and symbol >= self._initial:
            self._occurrences[symbol] = np.empty(0, dtype=np.int32)

    def _replace(self, left: Ints, symbol: int) -> None:
        """Merge the pairs that begin at the positions ``left``; none overlap."""
        symbols, following, previous, weights = self.symbols, self._next, self._previous, self.weights
        right = following[left]
        after = following[right]
        before = previous[left]
        self._mark[right] = True
        inner = np.where(before >= 0, self._mark[before], False)
        # Old pairs disappear: (right, after) of each, (before, left) unless it is the former of a neighbour.
        last = len(symbols)
        has_after = after < last
        gone = [
            self._keys(symbols[right[has_after]], symbols[after[has_after]]),
            self._keys(symbols[before[~inner & (before >= 0)]], symbols[left[~inner & (before >= 0)]]),
        ]
        gone_weights = [weights[left[has_after]], weights[left[~inner & (before >= 0)]]]
        self._subtract(np.concatenate(gone), np.concatenate(gone_weights))
        self._mark[right] = False
        self.tokens -= self.by_language(left, self.counts)
        symbols[left] = symbol
        symbols[right] = -2
        self.dead += len(right)
        following[left] = after
        previous[after[has_after]] = left[has_after]
        # New pairs appear, once each.
        self._mark[left] = True
        before, after = previous[left], following[left]
        outer = before >= 0
        outer &= ~np.where(outer, self._mark[before], False)
        has_after = after < last
        self._mark[left] = False
        self._add(
            np.concatenate(
                [
                    self._keys(symbols[left[has_after]], symbols[after[has_after]]),
                    self._keys(symbols[before[outer]], symbols[left[outer]]),
                ]
            ),
            np.concatenate([weights[left[has_after]], weights[left[outer]]]),
        )

    def _keys(self, left: Ints, right: Ints) -> NDArray[np.int64]:
        keys = (left.astype(np.int64) << _SHIFT) | right
        keys[(left < 0) | (right < 0)] = -1
        return keys

    def _grouped(
        self, keys: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> tuple[list[int], list[float]]:
        valid = keys >= 0
        unique, inverse = np.unique(keys[valid], return_inverse=True)
        return unique.tolist(), np.bincount(inverse, weights=weights[valid], minlength=len(unique)).tolist()

    def _subtract(self, keys: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        sums = self._sums
        for key, weight in zip(*self._grouped(keys, weights), strict=True):
            if key in sums:
                sums[key] -= weight

    def _add(self, keys: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        sums, mask, unknown = self._sums, (1 << _SHIFT) - 1, self.unknown
        for key, weight in zip(*self._grouped(keys, weights), strict=True):
            if key & mask in unknown or key >> _SHIFT in unknown:
                continue
            total = sums.get(key, 0.0) + weight
            sums[key] = total
            heapq.heappush(self._heap, (-total, key))

    def add_beside(self, positions: Ints, symbol: int) -> None:
        """Count the pairs on both sides of a character that is no longer spelled in bytes."""
        symbols, weights = self.symbols, self.weights
        before, after = self._previous[positions], self._next[positions]
        inside = after < len(symbols)
        outer = before >= 0
        outer &= np.where(outer, symbols[before] != symbol, False)
        self._add(
            np.concatenate(
                [
                    self._keys(symbols[positions[inside]], symbols[after[inside]]),
                    self._keys(symbols[before[outer]], symbols[positions[outer]]),
                ]
            ),
            np.concatenate([weights[positions[inside]], weights[positions[outer]]]),
        )


def pair_of(key: int) -> tuple[int, int]:
    """The pair of a number."""
    return key >> _SHIFT, key & ((1 << _SHIFT) - 1)


def _group_starts(ordered: NDArray[Any]) -> NDArray[np.intp]:
    """Where each run of equal values begins."""
    if not len(ordered):
        return np.empty(0, dtype=np.intp)
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
