"""Bootstrap intervals against theory and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tsugiki.evaluation.scoring.bits_per_byte import Score
from tsugiki.evaluation.scoring.intervals import Resampler

RANDOM = np.random.default_rng(5)


def make_scores(rates: np.ndarray, sizes: np.ndarray) -> list[Score]:
    """Documents with these bits per byte and lengths."""
    return [
        Score(rate * size * math.log(2), 1, int(size), 0) for rate, size in zip(rates, sizes, strict=True)
    ]


def test_interval_of_documents_of_one_length_is_that_of_their_mean() -> None:
    rates = RANDOM.normal(2.0, 0.3, 400)
    scores = make_scores(rates, np.full(400, 1000))
    low, high = Resampler(400, 4000, 0.95, seed=1, name="ja").bits_per_byte(scores) or (0, 0)
    error = rates.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(rates.mean() - 1.96 * error, abs=0.1 * error * 1.96)
    assert high == pytest.approx(rates.mean() + 1.96 * error, abs=0.1 * error * 1.96)


def test_long_documents_weigh_more_as_in_the_linearised_ratio() -> None:
    sizes = RANDOM.integers(100, 5000, 500).astype(float)
    rates = RANDOM.normal(1.5, 0.2, 500) + sizes / 10000
    scores = make_scores(rates, sizes)
    low, high = Resampler(500, 4000, 0.90, seed=1, name="ja").bits_per_byte(scores) or (0, 0)
    total = float((rates * sizes).sum() / sizes.sum())
    # Standard error of a ratio of sums (delta method); 1.645 for 90 %.
    error = math.sqrt(float((sizes**2 * (rates - total) ** 2).sum())) / sizes.sum()
    assert low == pytest.approx(total - 1.645 * error, abs=0.2 * error)
    assert high == pytest.approx(total + 1.645 * error, abs=0.2 * error)


def test_difference_is_paired() -> None:
    rates = RANDOM.normal(2.0, 0.5, 200)
    sizes = np.full(200, 100)
    before, after = make_scores(rates, sizes), make_scores(rates - 0.25, sizes)
    low, high = Resampler(200, 500, 0.95, seed=1, name="ja").difference(before, after) or (0, 0)
    # Every document improves by the same amount, so the interval has no width at all.
    assert low == pytest.approx(-0.25) and high == pytest.approx(-0.25)


def test_same_seed_same_interval() -> None:
    scores = make_scores(RANDOM.normal(2.0, 0.5, 50), np.full(50, 100))
    intervals = [
        Resampler(50, 200, 0.95, seed=seed, name=name).bits_per_byte(scores)
        for seed, name in ((1, "ja"), (1, "ja"), (2, "ja"), (1, "zh"))
    ]
    assert intervals[0] == intervals[1]
    assert len(set(intervals)) == 3


@pytest.mark.parametrize(("documents", "resamples"), [(1, 100), (5, 0)])
def test_nothing_to_resample(documents: int, resamples: int) -> None:
    scores = make_scores(np.full(documents, 2.0), np.full(documents, 100))
    resampler = Resampler(documents, resamples, 0.95, seed=1, name="ja")
    assert resampler.bits_per_byte(scores) is None
    assert resampler.difference(scores, scores) is None
