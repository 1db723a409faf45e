"""Schedules, the vocabulary loss and FLOPs against independent calculations."""

import pytest
import torch

from tsugiki.pretrain.config import ScheduleConfig, TrainConfig
from tsugiki.pretrain.model.loss import vocabulary_parallel_loss
from tsugiki.pretrain.planning.schedule import learning_rate, phase_at, resolve_phases


@pytest.mark.parametrize(
    ("kind", "done", "expected"),
    [
        ("cosine", 0, 0.0),
        ("cosine", 50, 0.5),
        ("cosine", 100, 1.0),
        ("cosine", 550, 0.1 + 0.9 * 0.5),
        ("cosine", 1000, 0.1),
        ("linear", 550, 0.55),
        ("linear", 1000, 0.1),
        ("constant", 999, 1.0),
        ("wsd", 800, 1.0),
        ("wsd", 900, 0.55),
        ("wsd", 1000, 0.1),
    ],
)
def test_schedule(kind: str, done: int, expected: float) -> None:
    schedule = ScheduleConfig.model_validate(
        {"kind": kind, "warmup_tokens": 100, "decay_tokens": 200 if kind == "wsd" else None}
    )
    assert learning_rate(schedule, done, 1000, 1.0, 0.1) == pytest.approx(expected)


def test_phases_have_their_own_schedules() -> None:
    config = TrainConfig.model_validate(
        {
            "phases": [
                {"trains": ["new_input_rows"], "until_tokens": 100, "learning_rate": 0.5},
                {"trains": ["all"], "schedule": {"kind": "linear", "warmup_tokens": 10}},
            ],
            "optimizer": {"learning_rate": 1.0, "minimum_learning_rate": 0.0},
            "schedule": {"kind": "constant"},
        }
    )
    phases = resolve_phases(config, 300)
    assert [phase_at(phases, tokens).trains for tokens in (0, 99, 100)] == [
        ("new_input_rows",), ("new_input_rows",), ("all",)
    ]  # fmt: skip
    assert phases[0].learning_rate(50) == 0.5
    assert phases[1].learning_rate(105) == pytest.approx(0.5)  # re-warmed
    assert phases[1].learning_rate(300) == pytest.approx(0.0)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_leaves_padding_out(z_loss: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 2, 24, generator=generator)
    labels = torch.randint(0, 19, (5, 2), generator=generator)
    weight = torch.rand(5, 2, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    objective, entropy = vocabulary_parallel_loss(
        ours * 1.0, labels, first=0, vocabulary_size=19, z_loss=z_loss
    )
    (objective * weight).sum().backward()
    true = theirs[..., :19]
    expected = torch.nn.functional.cross_entropy(true.reshape(-1, 19), labels.reshape(-1), reduction="none")
    total = expected.reshape(5, 2) + z_loss * true.logsumexp(-1).square()
    (total * weight).sum().backward()
    torch.testing.assert_close(entropy, expected.reshape(5, 2).detach())
    torch.testing.assert_close(objective, total)
    torch.testing.assert_close(ours.grad, theirs.grad)
