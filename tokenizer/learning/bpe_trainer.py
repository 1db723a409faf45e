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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tsugiki.tokenizer.learning.pair_counts import Floats, PairCounts, Segments, pair_of

_REBUILD_RATIO = 0.85
_FLOOR = 1e-12


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
        self._languages = list(segments.languages)
        self._importance = np.array([segments.weights[item] for item in self._languages])
        self._surfaces = list(surfaces)
        self._ids = {surface: index for index, surface in enumerate(surfaces)}
        self._pairs = PairCounts(segments, self._surfaces, byte_cost, character_factor)
        self._accept = accept
        self._quotas = dict(quotas or {})
        self._minimum = minimum_count
        self._balance = balance
        self._explicit = explicit
        self._reasons: dict[str, int] = {}
        self._taken = dict.fromkeys(self._languages, 0)
        self._initial_tokens = self._pairs.tokens.copy()

    def train(self, count: int, progress: Callable[[int], None] | None = None) -> Learned:
        """Learn up to ``count`` pieces."""
        pieces: list[LearnedPiece] = []
        history = [self._pairs.tokens.copy()]
        self._rebuild()
        while len(pieces) < count:
            popped = self._pairs.pop()
            if popped is None:
                return Learned(pieces, np.array(history), True, self._reasons)
            learned = self._apply(*popped)
            if learned is None:
                continue
            pieces.append(learned)
            history.append(self._pairs.tokens.copy())
            if progress is not None:
                progress(1)
            if self._is_stale():
                self._rebuild()
        return Learned(pieces, np.array(history), False, self._reasons)

    def _is_stale(self) -> bool:
        """Whether to rebuild: many dead positions, or weights that depend on remaining tokens and are old."""
        if self._balance and bool(np.any(self._pairs.tokens < _REBUILD_RATIO * self._tokens_at_rebuild)):
            return True
        return self._pairs.mostly_dead

    def _rebuild(self) -> None:
        """Weigh languages by their remaining tokens, and count every pair anew."""
        tokens = self._tokens_at_rebuild = self._pairs.tokens.copy()
        initial = np.maximum(self._initial_tokens, 1.0)
        remaining = np.maximum(tokens / initial, _FLOOR)
        self._pairs.rebuild(self._importance / initial / remaining**self._balance)

    def _apply(self, key: int, score: float) -> LearnedPiece | None:
        """Make a merge; None when it was refused or gave no new piece."""
        if key < 0:
            return self._learn_character(-key - 1)
        pairs = self._pairs
        left, right = pair_of(key)
        surface = self._surfaces[left] + self._surfaces[right]
        known = self._ids.get(surface)
        if known is not None and self._explicit:
            pairs.refused.add(key)
            return None
        if known is not None and known not in pairs.unknown:
            # Another way to the same piece: SentencePiece joins any two neighbours that make up a piece.
            pairs.join([(left, right)], known)
            return None
        reason = self._accept(surface, left, right)
        positions = pairs.positions(left, right) if reason is None else None
        language = 0
        if positions is not None:
            by_language = pairs.by_language(positions, pairs.weights)
            language = int(by_language.argmax())
            count = float(pairs.counts[positions].sum())
            if count < self._minimum:
                reason = "rare"
            elif self._taken[self._languages[language]] >= self._quotas.get(
                self._languages[language], 1 << 60
            ):
                reason = "quota"
        if reason is not None:
            pairs.refused.add(key)
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
        pairs.join(splits, symbol)
        self._taken[self._languages[language]] += 1
        return LearnedPiece(surface, (left, right), self._languages[language], count)

    def _learn_character(self, symbol: int) -> LearnedPiece | None:
        """Give a character that the base spells in bytes a row of its own."""
        pairs, surface = self._pairs, self._surfaces[symbol]
        positions = pairs.occurrences(symbol)
        reason = self._accept(surface, symbol, symbol)
        count = float(pairs.counts[positions].sum())
        by_language = pairs.by_language(positions, pairs.weights)
        language = self._languages[int(by_language.argmax())]
        if count < self._minimum:
            reason = "rare"
        elif self._taken[language] >= self._quotas.get(language, 1 << 60):
            reason = "quota"
        if reason is not None:
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
            return None
        cost = pairs.unknown.pop(symbol)
        pairs.tokens -= pairs.by_language(positions, pairs.counts) * (cost - 1)
        self._taken[language] += 1
        pairs.add_beside(positions, symbol)
        return LearnedPiece(surface, (symbol,), language, count)
