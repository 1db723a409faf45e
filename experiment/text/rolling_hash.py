"""Rolling hashes of text spans in numpy: equal spans have equal hashes, whatever their position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_MIX = np.uint64(0xD6E8FEB86659FD93)


class SpanHasher:
    """Polynomial hashes modulo 2^64 of spans of a text.

    With P[i] = sum of c_j B^j over j < i, the hash of [s, e) is (P[e] - P[s]) B^-s, spread over the
    high and low bits.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4").astype(np.uint64)
        # Mixing keeps neighbouring code points (a, b, c) from giving structured sums.
        codes += np.uint64(1)
        codes *= _MIX
        codes ^= codes >> np.uint64(31)
        powers, self._inverses = _powers(len(codes))
        self._prefix = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(codes * powers, out=self._prefix[1:])

    def spans(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Hashes:
        """Hashes of [starts, ends)."""
        return _spread((self._prefix[ends] - self._prefix[starts]) * self._inverses[starts])

    def windows(self, length: int) -> Hashes:
        """Hashes of all windows of a length; shape [characters - length + 1], empty if that is < 1."""
        count = len(self._prefix) - length
        if count < 1:
            return np.empty(0, np.uint64)
        return _spread((self._prefix[length:] - self._prefix[:count]) * self._inverses[:count])


def _spread(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(32))) * _MIX
    return values ^ (values >> np.uint64(29))


_TABLES: list[Hashes] = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """B^0 ... and B^-0 ..., the latter one longer, as an empty span may begin at the end."""
    if len(_TABLES[0]) <= count:
        size = 1 << max(16, count.bit_length())
        for place, base in enumerate((_BASE, pow(_BASE, -1, 1 << 64))):
            table = np.full(size, np.uint64(base))
            table[0] = 1
            _TABLES[place] = np.cumprod(table, dtype=np.uint64)
    return _TABLES[0][:count], _TABLES[1][: count + 1]


def word_bounds(words: Sequence[str], gap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each word begins and ends when they are joined with ``gap`` characters between them."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.cumsum(lengths + gap) - gap
    return ends - lengths, ends


def counted(hashes: Hashes) -> tuple[Hashes, NDArray[np.int64]]:
    """Different hashes, ascending, and how often each occurs; a plain sort is numpy's fastest."""
    ordered = np.sort(hashes)
    if not len(ordered):
        return ordered, np.empty(0, np.int64)
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    return ordered[edges[:-1]], np.diff(edges)
