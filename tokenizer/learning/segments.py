"""From text to the symbols that merges are learned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.base import BYTE, NORMAL, BaseTokenizer
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.learning.bpe_trainer import Segments

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
    """Encode runs with the base and lay them out for :class:`~tsugiki.tokenizer.learning.bpe_trainer.MergeLearner`.

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


class LatinGuard:
    """Keeps Latin pieces out of English that the stage has not seen.

    Neighbouring base tokens of protected text, and of the words that its language uses at large, are tested
    exactly elsewhere; that is enough for a piece that begins a word. What it misses by chance in one word
    turns up inside another, so a piece from inside of words must not occur in any protected word at all; of a
    phrase, one of its words must not. And names travel between languages (▁LibreOffice, ▁Jakarta): a capital
    is allowed only at the beginning of a word that the target languages write in small letters too.

    Args:
        protected: words of protected text.
        common: words of the target languages that are written in small letters, without names.
    """

    def __init__(self, protected: Iterable[str], common: Iterable[str]) -> None:
        self._protected = _searchable(protected)
        self._common = _searchable(common)

    def __call__(self, surface: str) -> str | None:
        """None, or the reason to refuse the piece."""
        cuts = [at for at, character in enumerate(surface) if at and character == SPACE]
        # ▁ab▁cd▁e: ▁ab▁ and ▁cd▁ are whole words, ▁e may go on.
        words = [
            surface[start : end + 1] for start, end in zip([0, *cuts], [*cuts, len(surface)], strict=True)
        ]
        begins_word = surface.startswith(SPACE) and len(words) == 1
        if not begins_word and all(
            word in self._protected or word.lower() in self._protected for word in words
        ):
            return "protected"
        for word in words:
            if word == word.lower():
                continue
            small = word[:1] + word[1:2].lower() + word[2:]
            if not word.startswith(SPACE) or small != word.lower() or small not in self._common:
                return "name"
        return None


def _searchable(words: Iterable[str]) -> str:
    """Distinct words, each led by ``▁``, as one string to search in."""
    return SPACE + SPACE.join(sorted(set(words))) + SPACE


class PieceJudge:
    """Decides about candidate pieces while merges are learned.

    Args:
        base: the base.
        rules: one per target language; a piece has to satisfy one of them.
        forbidden: concatenations that would change protected text.
        maximum_characters: longest piece.
        guard: decides about pieces of letters that protected languages have; None takes them all.
        is_foreign: whether a piece has letters that they have not.
    """

    def __init__(
        self,
        base: BaseTokenizer,
        rules: Sequence[ScriptRule],
        forbidden: set[str],
        maximum_characters: int,
        guard: LatinGuard | None = None,
        is_foreign: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self._is_foreign = is_foreign
        self._guard = guard
        self._processor: Any = base.exact_processor()
        self._known = {piece.piece for piece in base.proto.pieces if piece.type == NORMAL}
        self._rules = [rule.matcher() for rule in rules]
        self._forbidden = forbidden
        self._maximum = maximum_characters
        self._rank: dict[str, int] = {}

    def __call__(self, surface: str, left: int, right: int) -> str | None:
        """None and the piece is counted as learned, or the reason to refuse it."""
        if len(surface) > self._maximum:
            return "long"
        if not any(rule(surface) for rule in self._rules):
            return "script"
        if surface in self._forbidden:
            return "protected"
        if self._guard is not None and not self._is_foreign(surface):
            reason = self._guard(surface)
            if reason is not None:
                return reason
        if len(surface) > 1 and not self.reachable(surface):
            return "unreachable"
        self._rank[surface] = len(self._rank)
        return None

    def reachable(self, surface: str) -> bool:
        """Whether base merges, then learned ones, bring the surface alone down to two symbols."""
        tokens = self._base_tokens(surface)
        rank = self._rank
        while len(tokens) > 2:
            best, at = len(rank), -1
            for index in range(len(tokens) - 1):
                found = rank.get(tokens[index] + tokens[index + 1], best)
                if found < best:
                    best, at = found, index
            if at < 0:
                return False
            tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]
        return len(tokens) == 2

    def _base_tokens(self, surface: str) -> list[str]:
        known, start = self._known, 0
        tokens: list[str] = []
        for index, character in enumerate(surface):
            if character not in known:
                tokens += self._encode(surface[start:index])
                tokens.append(character)
                start = index + 1
        return tokens + self._encode(surface[start:])

    def _encode(self, surface: str) -> list[str]:
        if not surface:
            return []
        return list(self._processor.encode(surface.replace(SPACE, " "), out_type=str))
