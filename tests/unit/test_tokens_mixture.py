"""The mixture plan against hand calculations and Megatron's own blending."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import MixtureConfig
from data.mixture_plan import Available, plan_tokens
from experiment.errors import ConfigError

SOURCES = [
    Available("web-ja", "ja", 1.0, 600),
    Available("wiki-ja", "ja", 2.0, 150),
    Available("web-en", "en", 1.0, 1000),
]


def plan(sources: list[Available] | None = None, **config: object) -> dict[str, int]:
    return plan_tokens(MixtureConfig.model_validate(config), sources or SOURCES)


def test_weights_by_language_are_spread_by_weight_and_size() -> None:
    # ja 75 % of 1200 = 900, as 1 x 600 : 2 x 150 = 2 : 1.
    planned = plan(total_tokens=1200, weights={"ja": 3, "en": 1})
    assert planned == {"web-ja": 600, "wiki-ja": 300, "web-en": 300}


def test_weights_by_source_and_language_together() -> None:
    planned = plan(total_tokens=1000, weights={"wiki-ja": 0.2, "ja": 0.3, "en": 0.5})
    assert planned == {"wiki-ja": 200, "web-ja": 300, "web-en": 500}


def test_sources_no_weight_names_are_left_out() -> None:
    assert plan(total_tokens=100, weights={"en": 1}) == {"web-en": 100}


def test_without_weights_the_sources_say() -> None:
    assert plan(total_tokens=400) == {"web-ja": 100, "wiki-ja": 200, "web-en": 100}


def test_temperature() -> None:
    sources = [Available("a", "a", 1, 100), Available("b", "b", 1, 1600)]
    # 100^(1/2) : 1600^(1/2) = 10 : 40.
    planned = plan(sources, total_tokens=1000, weights="temperature", temperature=2, max_epochs=4)
    assert planned == {"a": 200, "b": 800}


def test_unimax_by_hand() -> None:
    # Budget 1000, at most 2 epochs. Ascending: c has room for 100 (< 1000 / 3): takes 100; b has room
    # for 400 (< 900 / 2): takes 400; a takes the rest, 500.
    sources = [Available("a", "a", 1, 5000), Available("b", "b", 1, 200), Available("c", "c", 1, 50)]
    assert plan(sources, total_tokens=1000, weights="unimax", max_epochs=2) == {"a": 500, "b": 400, "c": 100}
    with pytest.raises(ConfigError, match="at most 10,500"):
        plan(sources, total_tokens=20_000, weights="unimax", max_epochs=2)


def test_too_many_epochs_says_what_is_available() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(total_tokens=4000, weights={"wiki-ja": 0.5, "en": 0.5}, max_epochs=4)
    message = str(caught.value)
    assert "wiki-ja: 2,000 tokens = 13.33 epochs of 150; 4 epochs give 600" in message
    assert "web-en" not in message
    assert "total_tokens of at most 1,200" in message  # 600 / 0.5
    assert plan(total_tokens=1200, weights={"wiki-ja": 0.5, "en": 0.5}, max_epochs=4)["wiki-ja"] == 600


def test_epochs_by_source_and_language() -> None:
    limits = {"wiki-ja": 20, "en": 1}
    assert plan(total_tokens=2000, weights={"wiki-ja": 1, "en": 1}, max_epochs=limits)["wiki-ja"] == 1000
    with pytest.raises(ConfigError, match="web-en"):
        plan(total_tokens=4000, weights={"wiki-ja": 1, "en": 1}, max_epochs=limits)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"jp": 1}, "did you mean 'ja'"),
        ({"web-ja": 1, "wiki-ja": 1, "ja": 1}, "each of its sources has its own"),
    ],
)
def test_weights_that_name_nothing(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(total_tokens=10, weights=weights)


@given(
    total=st.integers(1, 10**12),
    weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9),
)
def test_plan_adds_up_exactly(total: int, weights: list[float]) -> None:
    sources = [Available(str(place), "x", 1, 10**12) for place in range(len(weights))]
    named = {str(place): weight for place, weight in enumerate(weights)}
    planned = plan(sources, total_tokens=total, weights=named, max_epochs=1e9)
    assert sum(planned.values()) == total
    for name, weight in named.items():
        assert abs(planned[name] - total * weight / sum(weights)) <= 1 + total * 1e-12


def test_megatron_blends_the_shares_in_every_thousand_samples() -> None:
    from megatron.core.datasets import helpers_cpp

    planned = plan(total_tokens=1_200_000, weights={"ja": 3, "en": 1}, max_epochs=10_000)
    shares = np.array(list(planned.values()), np.float64) / sum(planned.values())
    samples = 20_000
    source, place = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    helpers_cpp.build_blending_indices(source, place, shares, len(shares), samples, False)
    counts = np.cumsum(source[:, None] == np.arange(len(shares)), axis=0)  # [samples, sources]
    windows = (counts[1000:] - counts[:-1000]) / 1000
    assert np.abs(windows - shares).max() < 0.01
