"""Fits recover known laws, say how far they may be trusted, and refuse to go farther."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.study.laws import best_value, cmr, critical_share, dcpt, fit, parabola

SHARES = [0.05, 0.1, 0.2, 0.33, 0.5, 0.75]
NOISE = np.random.default_rng(5).normal(0, 0.002, 200)


def shares(values: list[float]) -> list[dict[str, float]]:
    return [{"share": value} for value in values]


@pytest.mark.parametrize("s", [-0.4, 0.3, 1.7])
def test_cmr_recovers_its_parameters(s: float) -> None:
    """L(R) = a R^s + b, exactly known."""
    losses = [0.8 * share**s + 1.1 for share in SHARES]
    found = fit(cmr(), shares(SHARES), losses, resamples=5)
    assert found.exponents["s"] == pytest.approx(s, abs=1e-3)
    assert found.coefficients == pytest.approx({"a": 0.8, "b": 1.1}, abs=1e-3)
    assert found.error < 1e-3
    assert found(share=0.3)[0] == pytest.approx(0.8 * 0.3**s + 1.1, abs=1e-4)


def law(share: float, tokens: float, parameters: float) -> float:
    """A D-CPT law with exponents of the size that the paper fits."""
    return 1.2 + 40 / parameters**0.25 + 25 * share**0.4 / tokens**0.18 + 0.05 / (share + 0.1) ** 0.6


def test_dcpt_predicts_a_larger_model_on_more_text() -> None:
    grid = list(itertools.product(SHARES, [1e8, 3e8, 1e9], [1e8, 4e8, 1e9]))
    points = [dict(zip(("share", "tokens", "parameters"), point, strict=True)) for point in grid]
    losses = [law(*point) + NOISE[at] for at, point in enumerate(grid)]
    found = fit(dcpt(tokens=True, parameters=True), points, losses, resamples=10)
    assert found.error < 0.004  # noise of 0.002
    value, (low, high) = found(share=0.2, tokens=4e9, parameters=4e9)
    assert value == pytest.approx(law(0.2, 4e9, 4e9), abs=0.02)
    assert low < high
    for name, far in (("tokens", 5e9), ("parameters", 5e9), ("share", 0.9), ("tokens", 5e7)):
        with pytest.raises(ConfigError, match="was not fitted there"):
            found(**{"share": 0.2, "tokens": 1e9, "parameters": 1e9, name: far})


def test_intervals_cover_the_truth() -> None:
    """Of 10 noisy fits, about 9 intervals of 95 % hold the true value; far fewer would be a wrong interval."""
    random = np.random.default_rng(3)
    truth = 0.5 * 0.4**-0.5 + 1.0
    held = 0
    for _ in range(10):
        losses = [0.5 * share**-0.5 + 1.0 + random.normal(0, 0.01) for share in [*SHARES, *SHARES]]
        low, high = fit(cmr(), shares([*SHARES, *SHARES]), losses, resamples=20)(share=0.4)[1]
        held += low <= truth <= high
    assert held >= 7


def test_critical_share() -> None:
    """English loses 0.3 (1 - r)^3: within 0.05 from r = 1 - (0.05 / 0.3)^(1/3) = 0.450 on."""
    losses = [2.0 + 0.3 * (1 - share) ** 3 + NOISE[at] / 10 for at, share in enumerate(SHARES)]
    found = fit(
        dcpt(tokens=False, parameters=False),
        shares([*SHARES, 0.6, 0.4]),
        [*losses, 2.0 + 0.3 * 0.4**3, 2.0 + 0.3 * 0.6**3],
        resamples=20,
    )
    share, (low, high) = critical_share(found, 2.05)
    assert share == pytest.approx(0.450, abs=0.02)
    assert low <= share <= high < 0.6
    with pytest.raises(ConfigError, match="no replay share that was measured"):
        critical_share(found, 1.9)
    assert critical_share(found, 9.0)[0] == pytest.approx(0.05)


def test_best_number_of_pieces() -> None:
    """A parabola in the logarithm whose lowest place is 4,000."""
    sizes = [500, 1000, 2000, 4000, 8000, 16000]
    losses = [1.5 + 0.02 * np.log(size / 4000) ** 2 + NOISE[at] / 10 for at, size in enumerate(sizes)]
    found = fit(parabola("pieces"), [{"pieces": size} for size in sizes], losses, resamples=50)
    best, (low, high) = best_value(found)
    assert best == pytest.approx(4000, rel=0.05) and low < best < high
    with pytest.raises(DataError, match="no best pieces"):
        best_value(
            fit(
                parabola("pieces"),
                [{"pieces": size} for size in sizes],
                [1 - np.log(size) ** 2 for size in sizes],
                resamples=5,
            )
        )


@pytest.mark.parametrize(
    ("points", "message"),
    [(SHARES[:4], "too few points for a fit of the CMR law"), ([0.1, 0.2] * 4, "too few values of share")],
)
def test_too_little_is_refused(points: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(cmr(), shares(points), [1.0 + share for share in points])
