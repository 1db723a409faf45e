"""How whole conversations fill sequences; that no answer is cut is in tests/distributed/test_train_conversations.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tsugiki.experiment.text.chat_tokens import mark
from tsugiki.pretrain.training.samples.packing import pack, row_of


@pytest.mark.parametrize("seed", range(3))
def test_everything_is_packed_once_and_fits(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 65, 500)
    rows = pack(lengths, 64)
    assert sorted(itertools.chain(*rows)) == list(range(500))
    filled = [int(lengths[row].sum()) for row in rows]
    assert max(filled) <= 64
    assert sum(filled) > 0.9 * 64 * len(rows)  # one after another fills about three quarters


def test_a_row_keeps_conversations_apart() -> None:
    first = np.array([mark(5, False), 6, 7])
    second = np.array([mark(8, False), 9])
    sample = row_of([first, second], 7, apart=True)
    assert sample.tokens.tolist() == [5, 6, 7, 8, 9, 0, 0]
    assert sample.labels.tolist() == [6, 7, 0, 9, 0, 0, 0]
    assert sample.loss_mask.tolist() == [1, 1, 0, 1, 0, 0, 0]
    assert sample.boundaries is not None
    assert sample.boundaries.tolist() == [[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 0, 1]]
    assert row_of([first, second], 7, apart=False).boundaries is None
