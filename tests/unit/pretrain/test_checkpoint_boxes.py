"""Stretches of a tensor as boxes."""

import math

import numpy
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.pretrain.checkpoint.own_parts import boxes

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(SHAPES, st.integers(0, 400), st.integers(0, 400))
def test_boxes_are_the_stretch(shape: tuple[int, ...], start: int, stop: int) -> None:
    """In its order, each contiguous: numpy numbers the elements, and the boxes' numbers one after another are the
    stretch's. At most two boxes an axis, and one more."""
    size = math.prod(shape)
    start, stop = min(start, size), min(stop, size)
    numbers = numpy.arange(size).reshape(shape)
    found = []
    for box in boxes(shape, start, stop):
        part = numbers[tuple(slice(a, a + n) for a, n in zip(box.offset, box.shape, strict=True))]
        assert part.ravel()[0] == box.start and part.shape == box.shape
        found.append(part.ravel())
    assert numpy.concatenate([*found, numpy.arange(0)]).tolist() == list(range(start, stop))
    assert len(found) <= 2 * len(shape) - 1
