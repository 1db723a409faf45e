"""The BPE trainer against a plain reference implementation."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugiki.tokenizer.learning.bpe_trainer import BpeTrainer
from tsugiki.tokenizer.learning.pair_counts import Segments

ALPHABET = "abcd"


def flatten(words: list[tuple[str, int]]) -> Segments:
    symbols, counts = [], []
    for word, count in words:
        symbols += [ALPHABET.index(character) for character in word] + [-1]
        counts += [count] * (len(word) + 1)
    return Segments(
        np.array(symbols, dtype=np.int32),
        np.array(counts, dtype=np.float32),
        np.array([0, len(symbols)]),
        ["x"],
        {"x": 1.0},
    )


def pairs_of(words: list[tuple[list[str], int]]) -> Counter[tuple[str, str]]:
    """Pairs in text, overlapping ones too, as the trainer counts them."""
    found: Counter[tuple[str, str]] = Counter()
    for symbols, count in words:
        for pair in pairwise(symbols):
            found[pair] += count
    return found


def join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(symbols):
        if tuple(symbols[at : at + 2]) == pair:
            out.append(symbols[at] + symbols[at + 1])
            at += 2
        else:
            out.append(symbols[at])
            at += 1
    return out


words = st.lists(
    st.tuples(st.text(ALPHABET, min_size=1, max_size=9), st.integers(1, 20)), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(words)
def test_every_merge_is_a_best_pair_and_token_counts_are_exact(found):
    learned = BpeTrainer(
        flatten(found), list(ALPHABET), {}, lambda *_: None, minimum_count=1, balance=0.0, explicit=True
    ).train(8)
    reference = [(list(word), count) for word, count in found]
    surfaces = list(ALPHABET)
    for step, piece in enumerate(learned.pieces):
        counts = pairs_of(reference)
        left, right = (surfaces[part] for part in piece.parts)
        # Pairs of equal symbols may overlap, so their counts are bounds; all others must be the best.
        usable = {pair: n for pair, n in counts.items() if "".join(pair) not in surfaces}
        best = (
            max(n for pair, n in usable.items() if pair[0] != pair[1])
            if any(a != b for a, b in usable)
            else 0
        )
        if left != right:
            assert counts[left, right] >= best
        reference = [(join(symbols, (left, right)), count) for symbols, count in reference]
        surfaces.append(left + right)
        tokens = sum(len(symbols) * count for symbols, count in reference)
        assert learned.tokens[step + 1][0] == tokens


def test_characters_in_bytes_compete_with_merges():
    # "x" costs 3 tokens as bytes and stands 4 times: a row saves 8; "ab" stands 5 times: a row saves 5.
    segments = flatten([("ab", 5), ("c", 4)])
    segments.symbols[segments.symbols == 2] = 4
    learned = BpeTrainer(segments, [*ALPHABET, "x"], {4: 3}, lambda *_: None, minimum_count=1).train(2)
    assert [piece.piece for piece in learned.pieces] == ["x", "ab"]
    assert learned.tokens[:, 0].tolist() == [22, 14, 9]


def test_a_refused_merge_is_routed_around():
    segments = flatten([("abc", 10)])
    refuse = {"ab"}
    learned = BpeTrainer(
        segments, list(ALPHABET), {}, lambda s, *_: "protected" if s in refuse else None, minimum_count=1
    ).train(5)
    assert [piece.piece for piece in learned.pieces] == ["bc", "abc"]
    assert learned.rejected == {"protected": 1} and learned.exhausted


def test_quota_limits_a_language_and_leaves_the_rest_to_others():
    segments = flatten([("abab", 9), ("cd", 1)])
    bounds = np.array([0, 5, len(segments.symbols)])
    segments = Segments(segments.symbols, segments.counts, bounds, ["x", "y"], {"x": 1.0, "y": 1.0})
    learned = BpeTrainer(segments, list(ALPHABET), {}, lambda *_: None, {"x": 0}, minimum_count=1).train(5)
    assert [(piece.piece, piece.language) for piece in learned.pieces] == [("cd", "y")]


def test_small_languages_count_by_proportion():
    # 1000 "ab" in x (half its tokens) against 2 "cd" in y (all of its tokens): y's first.
    segments = flatten([("ab", 1000), ("bbb", 1000), ("cd", 2)])
    bounds = np.array([0, 7, len(segments.symbols)])
    segments = Segments(segments.symbols, segments.counts, bounds, ["x", "y"], {"x": 1.0, "y": 1.0})
    learned = BpeTrainer(segments, list(ALPHABET), {}, lambda *_: None, minimum_count=1).train(1)
    assert learned.pieces[0].piece == "cd"
