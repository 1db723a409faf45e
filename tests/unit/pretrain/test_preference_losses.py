"""Losses over pairs against TRL: values and gradients of its table, and of TRL itself where it is installed."""

from __future__ import annotations

import pytest
import torch
from preference_case import TABLE, trl_script

from tsugiki.pretrain.config import PreferenceConfig
from tsugiki.pretrain.training.preference.losses import MEASURES, losses, measures, rewards

CASES = trl_script().CASES


def ours(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean loss, its gradient of the log-probabilities, rewards; fp32 as in training."""
    case, row = CASES[name], TABLE[name]
    policy = torch.tensor(row["policy"], requires_grad=True)
    reference, lengths = torch.tensor(row["reference"]), torch.tensor(row["lengths"])
    config = PreferenceConfig(**case["preference"])
    reward = rewards(case["objective"], config, policy, reference, lengths)
    loss = losses(case["objective"], config, reward).mean()
    loss.backward()
    assert policy.grad is not None
    return loss.detach(), policy.grad, reward.detach()


@pytest.mark.parametrize("name", CASES)
def test_as_trl(name: str) -> None:
    loss, gradient, _ = ours(name)
    assert float(loss) == pytest.approx(TABLE[name]["loss"], abs=1e-5)
    assert torch.allclose(gradient, torch.tensor(TABLE[name]["gradient"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_trl(name: str) -> None:
    pytest.importorskip("trl", reason="a comparison with TRL itself")
    found = trl_script().with_trl(CASES[name])
    assert found["loss"] == pytest.approx(TABLE[name]["loss"], abs=1e-5)
    assert found["grad_norm"] == pytest.approx(TABLE[name]["grad_norm"], rel=1e-4)


def test_the_first_step_knows_nothing() -> None:
    """Where policy and reference are one, DPO's loss is log 2 and no answer has a reward."""
    policy = torch.tensor([[-3.0, -5.0]])
    reward = rewards("dpo", PreferenceConfig(), policy, policy, torch.tensor([[2, 4]]))
    assert float(losses("dpo", PreferenceConfig(), reward)) == pytest.approx(0.6931472)
    assert reward.tolist() == [[0.0, 0.0]]


def test_what_is_reported() -> None:
    policy, reference = torch.tensor([[-3.0, -5.0], [-4.0, -1.0]]), torch.tensor([[-4.0, -5.5], [-4.0, -2.0]])
    lengths = torch.tensor([[2, 4], [6, 3]])
    reward = rewards("dpo", PreferenceConfig(beta=0.5), policy, reference, lengths)
    found = dict(zip(MEASURES, measures(reward, policy, reference, lengths).tolist(), strict=True))
    assert found == {
        "accuracy": 1, "margin": -0.25, "reward_chosen": 0.5, "reward_rejected": 0.75, "kl": -1.25,
        "tokens_chosen": 8, "tokens_rejected": 7,
    }  # fmt: skip
