"""Adam's step count goes through a checkpoint whichever libraries can be imported and whichever optimizer runs."""

import shutil
from pathlib import Path

import pytest
from training_case import STEPS, console, curve, train, write_graft, write_tokens

IMPORTABLE = """
import megatron.core.optimizer as optimizers, megatron.core.optimizer.distrib_optimizer as distributed
distributed.HAVE_APEX_OR_TE, distributed.USING_TE_OPTIMIZER = True, True  # what it sets when it is imported
optimizers.USING_PYTORCH_OPTIMIZER = False
"""
# The constructor, parameter groups and state of FusedAdam in apex and transformer-engine, whose kernels take the step
# as an int: `bias_correction` and `step` of the group are read, moments are made when a parameter has none.
FUSED = """
import math, torch
import tsugiki.pretrain.model.backend as backend
class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, *,
                 bias_correction=True, adam_w_mode=True, capturable=False, set_grad_none=None):
        assert adam_w_mode
        defaults = dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            corrected = 1 if group["bias_correction"] else 0
            first, second = group["betas"]
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert type(group["step"]) is int, group["step"]
            for item in group["params"]:
                if item.grad is None:
                    continue
                state = self.state[item]
                if len(state) == 0:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(item), torch.zeros_like(item)
                assert set(state) == {"exp_avg", "exp_avg_sq"}, set(state)
                item.mul_(1 - group["lr"] * group["weight_decay"])
                state["exp_avg"].lerp_(item.grad, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(item.grad, item.grad, value=1 - second)
                scale = math.sqrt(1 - second ** group["step"]) if corrected else 1.0
                rate = group["lr"] / (1 - first ** group["step"] if corrected else 1.0)
                item.addcdiv_(state["exp_avg"], (state["exp_avg_sq"].sqrt() / scale).add_(group["eps"]), value=-rate)
backend._adam = lambda _: (FusedAdam, False)
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("optimizers")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.fixture(scope="module")
def expected(case: Path) -> list[float]:
    """The losses of a run with torch's optimizer and without the libraries."""
    train(case, case / "torch")
    return curve(case / "torch")


@pytest.mark.parametrize(
    ("first", "second", "divided"),
    [
        (IMPORTABLE, IMPORTABLE, True),
        ("", IMPORTABLE + FUSED, True),
        ("", IMPORTABLE + FUSED, False),
        (IMPORTABLE + FUSED, "", True),
        (IMPORTABLE + FUSED, "", False),
        (IMPORTABLE + FUSED, IMPORTABLE + FUSED, True),
    ],
    ids=[
        "torch beside the libraries",
        *("torch to fused, divided", "torch to fused, whole"),
        *("fused to torch, divided", "fused to torch, whole"),
        "fused",
    ],
)
def test_resumed_with_the_same_or_another_optimizer(
    case: Path, expected: list[float], tmp_path: Path, first: str, second: str, divided: bool
) -> None:
    options = {
        "parallel": {"data": 2},
        "optimizer": {"learning_rate": 3e-3, "minimum_learning_rate": 3e-4, "distributed": divided},
        "save_interval_steps": STEPS // 4,
        "keep_last_checkpoints": 9,
    }
    train(case, tmp_path, fault=first, **options)
    assert curve(tmp_path) == pytest.approx(expected, abs=1e-4)
    for step in range(STEPS // 2, STEPS + 1, STEPS // 4):
        shutil.rmtree(tmp_path / "checkpoints" / f"iter_{step:07d}")
    train(case, tmp_path, fault=second, **options)
    assert f"continuing from the checkpoint of step {STEPS // 4}" in console(tmp_path)
    assert curve(tmp_path) == pytest.approx(expected, abs=1e-4)
