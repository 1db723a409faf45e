"""Repetition within a document: datatrove's Gopher rules, faster, and character n-grams."""

from __future__ import annotations

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates
from datatrove.utils.text import split_into_words
from numpy.typing import NDArray

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.filters.profiles import CharacterNgramSection
from tsugiki.experiment.text.rolling_hash import Hashes, SpanHasher, word_bounds


class FastRepetitionFilter(GopherRepetitionFilter):
    """datatrove's GopherRepetitionFilter with the same results in about a tenth of the time.

    The most frequent n-gram is found by hashes. For repeated n-grams, hashes give an upper bound
    (the characters under all n-grams that occurred before), and only documents above the threshold
    by that bound, nearly none, go through datatrove's exact loop.
    """

    name = "repetition"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document repeats itself within the limits."""
        text = doc.text
        if not text:
            return False, "empty"
        reason = self._repeated_parts(text)
        if reason is not None:
            return False, reason
        if not self.top_n_grams and not self.dup_n_grams:
            return True
        words = split_into_words(text, self.language)
        reason = self._top(words, len(text)) or self._duplicated(words, len(text))
        return True if reason is None else (False, reason)

    def _repeated_parts(self, text: str) -> str | None:
        for splitter, part, source in (
            (self.paragraph_exp, "para", text.strip()),
            (self._line_splitter, "line", text),
        ):
            parts = splitter.split(source)
            if len(set(parts)) == len(parts):
                continue
            elements, characters = find_duplicates(parts)
            limit = getattr(self, f"dup_{part}_frac")
            if limit and elements / len(parts) > limit:
                return f"dup_{part}_frac"
            limit = getattr(self, f"dup_{part}_char_frac")
            if limit and characters / len(text) > limit:
                return f"dup_{part}_char_frac"
        return None

    def _top(self, words: list[str], length: int) -> str | None:
        if not self.top_n_grams:
            return None
        hasher = SpanHasher(" ".join(words))
        starts, ends = word_bounds(words, gap=1)
        for n, limit in self.top_n_grams:
            if len(words) < n:
                continue
            first, last = starts[: len(words) - n + 1], ends[n - 1 :]
            hashes = hasher.spans(first, last)
            different, counts = _counted(hashes)
            most = int(counts.max())
            if most * int((last - first).max()) / length <= limit:
                continue
            # Of equally frequent n-grams datatrove takes the one met first.
            place = int(np.isin(hashes, different[counts == most]).argmax())
            if int(last[place] - first[place]) * most / length > limit:
                return f"top_{n}_gram"
        return None

    def _duplicated(self, words: list[str], length: int) -> str | None:
        if not self.dup_n_grams:
            return None
        hasher = SpanHasher("".join(words))
        starts, ends = word_bounds(words, gap=0)
        for n, limit in self.dup_n_grams:
            count = len(words) - n + 1
            if count < 2:
                continue
            first, last = starts[:count], ends[n - 1 :]
            hashes = hasher.spans(first, last)
            repeats = count - len(_counted(hashes)[0])
            if repeats * int((last - first).max()) / length <= limit:
                continue
            again = np.ones(count, bool)
            again[np.unique(hashes, return_index=True)[1]] = False
            # Characters under any repeated n-gram: +1 where one begins, -1 where it ends.
            edges = np.zeros(int(ends[-1]) + 1, np.int64)
            np.add.at(edges, first[again], 1)
            np.subtract.at(edges, last[again], 1)
            covered = int(np.count_nonzero(np.cumsum(edges)[:-1]))
            if covered / length > limit and find_all_duplicate(words, n) / length > limit:
                return f"duplicated_{n}_n_grams"
        return None


class CharacterNgramFilter(BaseFilter):
    """Repetition by character n-grams, as the Swallow corpus defines it.

    Top n-gram: occurrences of the most frequent one among all occurrences. Duplicate n-grams: how
    many of the different n-grams occur more than once.
    """

    name = "character_ngrams"

    def __init__(self, section: CharacterNgramSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.top = tuple(sorted(section.top.items()))
        self.duplicate = tuple(sorted(section.duplicate.items()))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the shares are within the limits."""
        hasher = SpanHasher(doc.text)
        for n, limit in self.top:
            counts = _counted(hasher.windows(n))[1]
            if len(counts) and counts.max() / counts.sum() > limit:
                return False, f"top_{n}"
        for n, limit in self.duplicate:
            counts = _counted(hasher.windows(n))[1]
            if len(counts) and np.count_nonzero(counts > 1) / len(counts) > limit:
                return False, f"duplicate_{n}"
        return True


def _counted(hashes: Hashes) -> tuple[Hashes, NDArray[np.int64]]:
    """Different hashes, ascending, and how often each occurs; a plain sort is numpy's fastest."""
    ordered = np.sort(hashes)
    if not len(ordered):
        return ordered, np.empty(0, np.int64)
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    return ordered[edges[:-1]], np.diff(edges)
