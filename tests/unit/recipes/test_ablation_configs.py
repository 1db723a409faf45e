"""The ablation's runs differ in the vocabulary and in what keeps the text of a step the same, in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsugiki.pipeline import ExperimentConfig, load_experiment

FOLDER = Path(__file__).parents[3] / "configs" / "ablation"


def _load(name: str) -> ExperimentConfig:
    return load_experiment(FOLDER / f"{name}.yaml").config


@pytest.mark.parametrize("name", ["ve", "ve-random"])
def test_runs_share_text_steps_and_schedule(name: str) -> None:
    kept, extended = _load("nve"), _load(name)
    assert extended.corpus == kept.corpus
    assert (extended.seed, extended.base, extended.evaluate) == (kept.seed, kept.base, kept.evaluate)
    assert extended.train.optimizer == kept.train.optimizer
    steps = [
        config.tokens.mixture.total_tokens // (config.train.global_batch * config.train.sequence_length)
        for config in (kept, extended)
    ]
    assert abs(steps[0] - steps[1]) <= 0.01 * steps[0]
    warmups = [
        config.train.schedule.warmup_tokens / (config.train.global_batch * config.train.sequence_length)
        for config in (kept, extended)
    ]
    assert warmups == [20, 20]
    for config in (kept, extended):
        weights = config.tokens.mixture.weights
        assert isinstance(weights, dict)
        assert sum(weights.values()) == config.tokens.mixture.total_tokens


def test_base_that_the_runs_share_is_the_one_the_first_command_writes() -> None:
    assert _load("base").base.scratch is not None
    assert _load("nve").base.path == f"{_load('base').run_dir}/base"
