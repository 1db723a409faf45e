"""Texts put together."""

from __future__ import annotations

from tsugiki.experiment.text.batches import text_batches


def test_a_batch_ends_with_the_text_that_fills_it() -> None:
    assert list(text_batches(iter(["ab", "c", "", "defg", "h"]), 3)) == [["ab", "c"], ["", "defg"], ["h"]]
    assert list(text_batches([], 3)) == []
