"""Schedules, the vocabulary loss and FLOPs against independent calculations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


DECAYS = {
    # MiniCPM 2404.06395, section 4.1; Hägele et al. 2405.18392, eq. 1 and section 3; the part that is done of the decay
    "linear": lambda high, low, q: high * (1 - q) + low * q,
    "1-sqrt": lambda high, low, q: high - (high - low) * q**0.5,
    "exponential": lambda high, low, q: math.exp(math.log(high) * (1 - q) + math.log(low) * q),
}


@given(
    shape=st.sampled_from(sorted(DECAYS)),
    warmup=st.integers(0, 300),
    descent=st.integers(1, 300),
    decay=st.integers(1, 400),
    done=st.integers(0, 1000),
    held=st.floats(0.1, 1.0),
)
def test_schedules_with_a_constant_part(
    shape: str, warmup: int, descent: int, decay: int, done: int, held: float
) -> None:
    """Three formulas written down again from the papers; peak 1, minimum .1, 1,000 tokens."""
    after = max(0.0, (done - (1000 - decay)) / decay)
    rises = done < warmup

    def rate(**schedule: object) -> float:
        return learning_rate(ScheduleConfig.model_validate(schedule), done, 1000, 1.0, 0.1)

    ends = {"decay_tokens": decay, "decay_shape": shape}
    wsd = rate(kind="wsd", warmup_tokens=warmup, **ends)
    assert wsd == pytest.approx(done / warmup if rises else DECAYS[shape](1.0, 0.1, after))
    assert rate(kind="cooldown", decay_shape=shape) == pytest.approx(DECAYS[shape](1.0, 0.1, done / 1000))
    infinite = {
        "kind": "infinite", "warmup_tokens": warmup, "descent_tokens": descent, "constant_learning_rate": held
    }  # fmt: skip
    p = min(1.0, max(0.0, (done - warmup) / descent))
    before = done / warmup if rises else held + (1.0 - held) / 2 * (1 + math.cos(math.pi * p))
    assert rate(**infinite) == pytest.approx(before)  # without an end it holds
    expected = before if after == 0 else DECAYS[shape](held, 0.1, after)
    assert rate(**infinite, **ends) == pytest.approx(expected)


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
