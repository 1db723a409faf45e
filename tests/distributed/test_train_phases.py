"""Staged training as EEVE does it: what is frozen stays as it was, bit for bit."""

import signal
from pathlib import Path

import pytest
import torch
from training_case import (
    BASE_ROWS,
    GLOBAL_BATCH,
    SEQUENCE,
    STEPS,
    VOCABULARY,
    begin,
    checkpoint_tensor,
    curve,
    lines,
    train,
    weights,
    write_graft,
    write_tokens,
)

STEP_TOKENS = GLOBAL_BATCH * SEQUENCE
PHASES = [
    {"trains": ["new_input_rows"], "until_tokens": 6 * STEP_TOKENS, "schedule": {"kind": "constant"}},
    {
        "trains": ["new_output_rows", "layers:-1"],
        "until_tokens": 12 * STEP_TOKENS,
        "learning_rate": 1e-2,
        "minimum_learning_rate": 0.0,
        "schedule": {"kind": "linear", "warmup_tokens": 2 * STEP_TOKENS},
    },
    {"trains": ["all"]},
]
OPTIONS = {
    "phases": PHASES,
    "optimizer": {"learning_rate": 3e-3, "minimum_learning_rate": 3e-4, "weight_decay": 0.5},
    "schedule": {"kind": "cosine"},
    "save_interval_steps": 3,
    "keep_last_checkpoints": 99,
}
LAYOUTS = {
    "alone": {},
    "tp2": {"parallel": {"tensor": 2}},
    "dp2-distributed": {"parallel": {"data": 2}},
    "tp2-pp2": {"parallel": {"tensor": 2, "pipeline": 2}},
    "dp2-plain": {"parallel": {"data": 2}, "optimizer": {**OPTIONS["optimizer"], "distributed": False}},
    "bf16": {"precision": "bf16"},
}
TABLE, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
LAYERS, NORM = "decoder.layers.mlp.linear_fc1.weight", "decoder.final_layernorm.weight"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory)
    return directory


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {key: checkpoint_tensor(path, key) for key in (TABLE, HEAD, LAYERS, NORM)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_rows_and_layers_do_not_move(case: Path, layout: str) -> None:
    """With weight decay; killed in the middle of the first and the second phase; rows of the padding too."""
    output = case / layout
    options = {**OPTIONS, **LAYOUTS[layout]}
    for step in (4, 10):
        run = begin(case, output, **options)
        run.wait_for_step(step)
        assert run.kill() == -signal.SIGKILL
    train(case, output, **options)
    at = [output / "checkpoints" / f"iter_{step:07d}" for step in (6, 12, 15)]
    before, first, second, third = (tensors(path) for path in (case / "graft" / "checkpoint", *at))
    if layout == "bf16":  # the graft is fp32
        before = {key: value.to(torch.bfloat16) for key, value in before.items()}
    assert first[TABLE].shape[0] == VOCABULARY
    assert first[TABLE][:BASE_ROWS].equal(before[TABLE][:BASE_ROWS])
    assert (first[TABLE][BASE_ROWS:] != before[TABLE][BASE_ROWS:]).any(dim=1).all(), "decay moves every row"
    for key in (HEAD, LAYERS, NORM):
        assert first[key].equal(before[key])
    assert second[TABLE].equal(first[TABLE])
    assert second[HEAD][:BASE_ROWS].equal(before[HEAD][:BASE_ROWS])
    assert (second[HEAD][BASE_ROWS:] != before[HEAD][BASE_ROWS:]).any(dim=1).all()
    assert second[LAYERS][:-1].equal(before[LAYERS][:-1])
    assert not second[LAYERS][-1].equal(before[LAYERS][-1])
    assert second[NORM].equal(before[NORM])
    assert all(not third[key].equal(second[key]) for key in (TABLE, HEAD, LAYERS, NORM))
    if layout not in ("alone", "bf16"):
        assert curve(output) == pytest.approx(curve(whole(case)), abs=1e-5)


def whole(case: Path) -> Path:
    """The same without an interruption, in one process."""
    output = case / "whole"
    if not (output / "metrics.jsonl").exists():
        train(case, output, **OPTIONS)
    return output


def test_an_interruption_in_a_phase_changes_nothing(case: Path) -> None:
    output = case / "interrupted"
    for step in (5, 8):
        run = begin(case, output, **OPTIONS)
        run.wait_for_step(step)
        run.kill()
    train(case, output, **OPTIONS)
    assert curve(output) == curve(whole(case))
    assert weights(output, STEPS) == weights(whole(case), STEPS)


def test_phases_have_their_own_schedules(case: Path) -> None:
    """By hand: constant; warm-up of 2 of 6 steps to .01, then linear to 0; a cosine over the last 8 steps."""
    rates = curve(whole(case), "train/learning_rate")
    assert rates[:6] == [3e-3] * 6
    assert rates[6:12] == pytest.approx([0.005, 0.01, 0.0075, 0.005, 0.0025, 0.0])
    assert rates[19] == pytest.approx(3e-4) and rates[15] == pytest.approx((3e-3 + 3e-4) / 2)
    found = [line for line in lines(whole(case)) if "train/loss" in line]
    assert [line["phase/number"] for line in found] == [1] * 6 + [2] * 6 + [3] * 8
    assert [line["phase"] for line in found[5:7]] == ["phase-1", "phase-2"]
    assert found[7]["phase/consumed_tokens"] == 2 * STEP_TOKENS
    assert found[8]["phase/progress"] == pytest.approx(0.5)
    # What is frozen has no gradient; the norms of the rows say so.
    assert found[2]["gradient_norm/input_embedding/old_rows"] == 0
    assert found[2]["gradient_norm/input_embedding/new_rows"] == pytest.approx(found[2]["train/grad_norm"])
    assert found[2]["gradient_norm/output_embedding/new_rows"] == 0
    assert found[7]["gradient_norm/output_embedding/new_rows"] > 0
    assert found[7]["gradient_norm/input_embedding/new_rows"] == 0
