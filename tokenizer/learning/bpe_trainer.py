"""Merges learned on top of the base's own segmentation ("continued BPE").

An independent BPE model spends pieces on what the base model never lets through and on scaffolding that the
base already has. Here the training text is first cut as the base cuts it, and every further merge is counted
on what the merged tokenizer would really do; a merge that would touch protected text is never made, so the
ones that build on something else instead are found by themselves.

The next merge is the one that saves the largest *proportion* of a language's tokens, summed over languages by
weight, whatever the amount of text in each; ``balance`` says how far the tokens that remain count instead.

Words used here: a *symbol* is a base token, a learned piece, or a character that the base spells in bytes. A
*segment* is a stretch of text within which pieces may form; a *position* is an index into the flat array of
all segments, with -1 between two segments. N: positions, L: languages, K: learned pieces.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHIFT = 22  # symbols per vocabulary: 4 million
_REBUILD_RATIO = 0.85
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


@dataclass(frozen=True)
class LearnedPiece:
    """One learned piece.

    Attributes:
        piece: surface.
        parts: symbols joined; one symbol for a character that the base spells in bytes.
        language: language that it saves most for.
        count: occurrences in the sample when it was learned.
    """

    piece: str
    parts: tuple[int, ...]
    language: str
    count: float


@dataclass
class Learned:
    """What was learned.

    Attributes:
        pieces: in merge order.
        tokens: [K + 1, L] tokens of each language in the sample after so many pieces.
        exhausted: no candidate was left before the wanted number was reached.
    """

    pieces: list[LearnedPiece]
    tokens: Floats
    exhausted: bool = False
    rejected: dict[str, int] = field(default_factory=dict)


Acceptance = Callable[[str, int, int], str | None]
"""(surface, left symbol, right symbol) -> None to accept, or the name of the reason to refuse."""


class BpeTrainer:
    """Learns merges on :class:`Segments`.

    Args:
        segments: training text; its arrays are changed in place.
        surfaces: surface of every initial symbol (``▁`` for a space).
        byte_cost: tokens that a character symbol costs as long as it is spelled in bytes.
        accept: decides about a candidate.
        quotas: most pieces per language.
        minimum_count: a piece must occur this often.
        explicit: merges are a list of pairs (byte-level BPE), so that only the learned pair makes the piece;
            SentencePiece joins every pair that spells it.
        character_factor: how much more a token saved by a character counts than one saved by a merge.
        balance: 0 maximises the weighted sum of the proportions saved, 1 that of their logarithms, so that a
            language that is already short goes on getting pieces as long as its remaining text shrinks.
    """

    def __init__(
        self,
        segments: Segments,
        surfaces: Sequence[str],
        byte_cost: Mapping[int, int],
        accept: Acceptance,
        quotas: Mapping[str, int] | None = None,
        minimum_count: float = 2,
        balance: float = 0.5,
        explicit: bool = False,
        character_factor: float = 1.0,
    ) -> None:
        self._symbols = segments.symbols
        self._counts = segments.counts
        self._bounds = segments.bounds
        self._languages = list(segments.languages)
        self._importance = np.array([segments.weights[item] for item in self._languages])
        self._surfaces = list(surfaces)
        self._ids = {surface: index for index, surface in enumerate(surfaces)}
        self._unknown = dict(byte_cost)
        self._accept = accept
        self._quotas = dict(quotas or {})
        self._minimum = minimum_count
        self._balance = balance
        self._explicit = explicit
        self._character_factor = character_factor
        size = len(self._symbols)
        self._next = np.arange(1, size + 1, dtype=np.int32)
        self._previous = np.arange(-1, size - 1, dtype=np.int32)
        self._mark = np.zeros(size, dtype=bool)
        self._refused: set[int] = set()
        self._reasons: dict[str, int] = {}
        self._taken = dict.fromkeys(self._languages, 0)
        self.tokens = self._count_tokens()
        self._initial_tokens = self.tokens.copy()

    def _count_tokens(self) -> Floats:
        """[L] tokens of each language, characters in bytes counted as so many."""
        cost = np.ones(len(self._surfaces) + 1)
        cost[-1] = 0  # symbols[-1]: between segments
        for symbol, tokens in self._unknown.items():
            cost[symbol] = tokens
        result = np.zeros(len(self._languages))
        for language, (start, end) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
            symbols = self._symbols[start:end]
            live = symbols != -2
            result[language] = float((cost[symbols[live]] * self._counts[start:end][live]).sum())
        return result

    def train(self, count: int, progress: Callable[[int], None] | None = None) -> Learned:
        """Learn up to ``count`` pieces."""
        pieces: list[LearnedPiece] = []
        history = [self.tokens.copy()]
        self._rebuild()
        while len(pieces) < count:
            popped = self._pop()
            if popped is None:
                return Learned(pieces, np.array(history), True, self._reasons)
            learned = self._apply(*popped)
            if learned is None:
                continue
            pieces.append(learned)
            history.append(self.tokens.copy())
            if progress is not None:
                progress(1)
            if self._is_stale():
                self._rebuild()
        return Learned(pieces, np.array(history), False, self._reasons)

    def _is_stale(self) -> bool:
        """Whether to rebuild: many dead positions, or weights that depend on remaining tokens and are old."""
        if self._balance and bool(np.any(self.tokens < _REBUILD_RATIO * self._tokens_at_rebuild)):
            return True
        return self._dead > _DEAD_SHARE * len(self._symbols)

    # -- counting -----------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Drop dead positions, weigh languages by their remaining tokens, count every pair anew."""
        self._compact()
        self._dead = 0
        self._tokens_at_rebuild = self.tokens.copy()
        remaining = np.maximum(self.tokens / np.maximum(self._initial_tokens, 1.0), _FLOOR)
        self._scale = self._importance / np.maximum(self._initial_tokens, 1.0) / remaining**self._balance
        self._weights = self._counts.astype(np.float32)
        for language, (start, end) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
            self._weights[start:end] *= np.float32(self._scale[language])
        known = np.ones(len(self._surfaces) + 1, dtype=bool)
        known[-1] = False
        known[list(self._unknown)] = False
        usable = known[self._symbols]
        left = np.flatnonzero(usable[:-1] & usable[1:]).astype(np.int32)
        keys = (self._symbols[left].astype(np.int64) << _SHIFT) | self._symbols[left + 1]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        self._index = left[order]
        starts = _group_starts(keys)
        self._index_keys = keys[starts]
        self._index_starts = np.append(starts, len(keys))
        sums = (
            np.add.reduceat(self._weights[self._index].astype(np.float64), starts) if len(starts) else starts
        )
        self._sums: dict[int, float] = dict(zip(self._index_keys.tolist(), sums.tolist(), strict=True))
        self._heap = [(-total, key) for key, total in self._sums.items() if key not in self._refused]
        self._occurrences: dict[int, Ints] = {}
        self._initial = len(self._surfaces)
        self._push_characters()
        heapq.heapify(self._heap)

    def _compact(self) -> None:
        live = self._symbols != -2
        if not live.all():
            shift = np.concatenate(([0], np.cumsum(live)))
            self._bounds = shift[self._bounds]
            self._symbols = self._symbols[live]
            self._counts = self._counts[live]
        size = len(self._symbols)
        self._next = np.arange(1, size + 1, dtype=np.int32)
        self._previous = np.arange(-1, size - 1, dtype=np.int32)
        self._mark = np.zeros(size, dtype=bool)

    def _push_characters(self) -> None:
        """Characters in bytes compete with merges: adding one saves all its bytes but one."""
        if not self._unknown:
            return
        is_unknown = np.zeros(len(self._surfaces) + 1, dtype=bool)
        is_unknown[list(self._unknown)] = True
        positions = np.flatnonzero(is_unknown[self._symbols]).astype(np.int32)
        symbols = self._symbols[positions]
        order = np.argsort(symbols, kind="stable")
        positions, symbols = positions[order], symbols[order]
        starts = _group_starts(symbols)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(symbols)], strict=True):
            symbol = int(symbols[start])
            self._occurrences[symbol] = positions[start:end]
            saved = float(self._weights[positions[start:end]].sum()) * (self._unknown[symbol] - 1)
            saved *= self._character_factor
            self._heap.append((-saved, -symbol - 1))

    def _pop(self) -> tuple[int, float] | None:
        """The best candidate that still stands: a pair key, or minus symbol minus one for a character."""
        while self._heap:
            negative, key = heapq.heappop(self._heap)
            if key < 0:
                return key, -negative
            current = self._sums.get(key, 0.0)
            if current <= _FLOOR or key in self._refused:
                continue
            if current < -negative * (1 - 1e-9):
                heapq.heappush(self._heap, (-current, key))
                continue
            return key, current
        return None

    def _positions(self, left: int, right: int) -> Ints:
        """Positions at which a pair stands now."""
        symbols, following = self._symbols, self._next
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

    # -- merging ------------------------------------------------------------------------------------

    def _apply(self, key: int, score: float) -> LearnedPiece | None:
        """Make a merge; None when it was refused or gave no new piece."""
        if key < 0:
            return self._learn_character(-key - 1)
        left, right = key >> _SHIFT, key & ((1 << _SHIFT) - 1)
        surface = self._surfaces[left] + self._surfaces[right]
        known = self._ids.get(surface)
        if known is not None and self._explicit:
            self._refused.add(key)
            return None
        if known is not None and known not in self._unknown:
            # Another way to the same piece: SentencePiece joins any two neighbours that make up a piece.
            self._join([(left, right)], known)
            return None
        reason = self._accept(surface, left, right)
        positions = self._positions(left, right) if reason is None else None
        language = 0
        if positions is not None:
            by_language = self._by_language(positions, self._weights)
            language = int(by_language.argmax())
            count = float(self._counts[positions].sum())
            if count < self._minimum:
                reason = "rare"
            elif self._taken[self._languages[language]] >= self._quotas.get(
                self._languages[language], 1 << 60
            ):
                reason = "quota"
        if reason is not None:
            self._refused.add(key)
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
            return None
        symbol = len(self._surfaces)
        self._surfaces.append(surface)
        self._ids[surface] = symbol
        splits = [(left, right)]
        for cut in range(1, len(surface) if not self._explicit else 0):
            pair = self._ids.get(surface[:cut]), self._ids.get(surface[cut:])
            if pair[0] is not None and pair[1] is not None and pair != (left, right):
                splits.append((pair[0], pair[1]))
        self._join(splits, symbol)
        self._taken[self._languages[language]] += 1
        return LearnedPiece(surface, (left, right), self._languages[language], count)

    def _by_language(self, positions: Ints, weights: NDArray[np.float32]) -> Floats:
        owner = np.searchsorted(self._bounds, positions, side="right") - 1
        sums = np.bincount(owner, weights=weights[positions], minlength=len(self._languages))
        return sums.astype(np.float64)

    def _join(self, pairs: Sequence[tuple[int, int]], symbol: int) -> None:
        """Replace pairs by a symbol everywhere."""
        made: list[Ints] = []
        for left, right in pairs:
            if left in self._unknown or right in self._unknown:
                continue
            self._sums.pop((left << _SHIFT) | right, None)
            positions = self._positions(left, right)
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
        symbols, following, previous, weights = self._symbols, self._next, self._previous, self._weights
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
        self.tokens -= self._by_language(left, self._counts)
        symbols[left] = symbol
        symbols[right] = -2
        self._dead += len(right)
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
        sums, mask, unknown = self._sums, (1 << _SHIFT) - 1, self._unknown
        for key, weight in zip(*self._grouped(keys, weights), strict=True):
            if key & mask in unknown or key >> _SHIFT in unknown:
                continue
            total = sums.get(key, 0.0) + weight
            sums[key] = total
            heapq.heappush(self._heap, (-total, key))

    def _learn_character(self, symbol: int) -> LearnedPiece | None:
        """Give a character that the base spells in bytes a row of its own."""
        surface = self._surfaces[symbol]
        positions = self._occurrences.get(symbol, np.empty(0, dtype=np.int32))
        reason = self._accept(surface, symbol, symbol)
        count = float(self._counts[positions].sum())
        by_language = self._by_language(positions, self._weights)
        language = self._languages[int(by_language.argmax())]
        if count < self._minimum:
            reason = "rare"
        elif self._taken[language] >= self._quotas.get(language, 1 << 60):
            reason = "quota"
        if reason is not None:
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
            return None
        cost = self._unknown.pop(symbol)
        self.tokens -= self._by_language(positions, self._counts) * (cost - 1)
        self._taken[language] += 1
        symbols, weights = self._symbols, self._weights
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
        return LearnedPiece(surface, (symbol,), language, count)


def _group_starts(ordered: NDArray[Any]) -> NDArray[np.intp]:
    """Where each run of equal values begins."""
    if not len(ordered):
        return np.empty(0, dtype=np.intp)
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
