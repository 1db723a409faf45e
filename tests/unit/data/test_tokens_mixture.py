"""The mixture plan against hand calculations and Megatron's own blending."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.data.config import MixtureConfig
from tsugiki.data.tokenise.mixture_plan import Available, plan_tokens
from tsugiki.experiment.artefacts.indexed_dataset import concatenate
from tsugiki.experiment.errors import ConfigError
from tsugiki.pipeline import load_experiment

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


def test_weights_that_change() -> None:
    """600 tokens of ja, as 2 : 1 like above, then 200 of wiki-ja and 200 of web-en; epochs are those of both."""
    changes = [{"from_tokens": 600, "weights": {"wiki-ja": 1, "en": 1}}]
    mixture = {"total_tokens": 1000, "weights": {"ja": 1}, "changes": changes}
    assert plan(**mixture) == {"web-ja": 400, "wiki-ja": 400, "web-en": 200}
    with pytest.raises(ConfigError, match=r"wiki-ja: 400 tokens = 2\.67 epochs"):
        plan(**mixture, max_epochs=2.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"from_tokens": 1000, "weights": {"ja": 1}}], "stay below total_tokens"),
        ([{"from_tokens": 5, "weights": {"ja": 1}}, {"from_tokens": 5, "weights": {"en": 1}}], "grow"),
        ([{"from_tokens": 5, "weights": {"ja": 0}}], "weights above 0"),
    ],
)
def test_wrong_changes(changes: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(total_tokens=1000, changes=changes)


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


LENGTH = 8  # tokens of a sample
SOURCE_OF_BASE = 1000  # token ids tell the source: 1000, 2000, …


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """Megatron's datasets ask for a process group, be it of one process."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def blended(folder: Path, mixture: dict[str, Any], samples: int, seed: int = 5) -> tuple[Any, list[float]]:
    """A corpus through the tokens stage's joining, the plan and Megatron's builder."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    rng = np.random.default_rng(1)
    sizes = {"web-ja": 6000, "wiki-ja": 1500, "web-en": 9000}
    available = [
        Available("web-ja", "ja", 1.0, sizes["web-ja"]), Available("wiki-ja", "ja", 2.0, sizes["wiki-ja"]),
        Available("web-en", "en", 1.0, sizes["web-en"]),
    ]  # fmt: skip
    for number, (name, size) in enumerate(sizes.items(), start=1):
        lengths = np.full(size // 30, 30, np.int32)
        ids = rng.integers(0, 500, lengths.sum()) + number * SOURCE_OF_BASE
        (folder / f"{name}.part").write_bytes(ids.astype(np.uint16).tobytes())
        concatenate(folder / name, [folder / f"{name}.part"], lengths, np.dtype(np.uint16))
    planned = plan_tokens(
        MixtureConfig.model_validate({"total_tokens": samples * LENGTH} | mixture), available
    )
    shares = [planned[name] / (samples * LENGTH) for name in sizes]
    tokenizer = SimpleNamespace(eod=0, pad=-1, vocab_size=5000, unique_identifiers={"x": 1})
    config = GPTDatasetConfig(
        random_seed=seed, sequence_length=LENGTH, path_to_cache=str(folder / "cache"), tokenizer=tokenizer,
        blend_per_split=[([str(folder / name) for name in sizes], shares), None, None],
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config)
    return builder.build()[0], shares


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    "mixture",
    [
        {"weights": {"ja": 3, "en": 1}, "max_epochs": 1000},
        {"weights": {"web-ja": 0.01, "wiki-ja": 0.333, "en": 0.657}, "max_epochs": 1000},
        {"weights": "temperature", "temperature": 2, "max_epochs": 1000},
        {"weights": "unimax", "max_epochs": 40},
    ],
)
def test_tokens_of_any_thousand_samples_are_within_one_percent(
    tmp_path: Path, mixture: dict[str, Any]
) -> None:
    """Counted in the tokens that training reads, not in Megatron's indices."""
    samples = 5_000
    dataset, shares = blended(tmp_path, mixture, samples)
    first = np.array([int(dataset[place]["tokens"][0]) // SOURCE_OF_BASE for place in range(samples)])
    chosen = first[:, None] == np.arange(1, 4)
    counts = np.concatenate([np.zeros((1, 3)), np.cumsum(chosen, axis=0)])  # [samples + 1, sources]
    windows = (counts[1000:] - counts[:-1000]) / 1000
    assert len(windows) == samples - 999
    assert np.abs(windows - np.array(shares)).max() < 0.01
    # The check can fail: samples drawn at random with these shares are further off.
    drawn = np.random.default_rng(0).choice(3, samples, p=shares)[:, None] == np.arange(3)
    cumulated = np.concatenate([np.zeros((1, 3)), np.cumsum(drawn, axis=0)])
    assert np.abs((cumulated[1000:] - cumulated[:-1000]) / 1000 - np.array(shares)).max() > 0.01


@pytest.mark.usefixtures("one_process")
def test_blend_is_the_same_for_a_seed_and_another_for_another(tmp_path: Path) -> None:
    def sequence(name: str, seed: int) -> list[list[int]]:
        folder = tmp_path / name
        folder.mkdir()
        dataset, _ = blended(folder, {"weights": {"ja": 3, "en": 1}, "max_epochs": 1000}, 300, seed)
        return [dataset[place]["tokens"].tolist() for place in range(300)]

    assert sequence("a", 5) == sequence("b", 5)
    assert sequence("c", 6) != sequence("a2", 5)


def test_a_stretch_without_a_step_is_refused_where_it_stands() -> None:
    """Steps of 512 tokens: 1,025 to 1,500 holds no multiple of it, 1,025 to 1,536 none either, 1,024 on does."""
    base = {
        "train.global_batch": 4, "train.sequence_length": 128, "tokens.mixture.total_tokens": 5120,
        "train.micro_batch": 1, "train.parallel": {}, "train.schedule.warmup_tokens": 0,
    }  # fmt: skip

    def load(*starts: int) -> object:
        changes = [{"from_tokens": start, "weights": {"en": 1}} for start in starts]
        return load_experiment("smoke", values={**base, "tokens.mixture.changes": changes})

    load(1024, 1536)
    for starts in ((1025, 1500), (1025, 1536)):
        with pytest.raises(
            ConfigError, match=r"no step falls into a stretch(.|\n)*changes\.0\.from_tokens(.|\n)*512"
        ):
            load(*starts)
