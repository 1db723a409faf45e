"""Training is the same under every layout, and goes on under another one than it began with."""

import shutil
from pathlib import Path

import pytest
from training_case import STEPS, curve, train, weights, write_graft, write_tokens

OPTIMIZER = {"learning_rate": 3e-3, "minimum_learning_rate": 3e-4}
# Two tensor-parallel ranks pad the 101 rows to 112, 90 of them the base's, 11 added.
LAYOUTS = {
    "tp2": {"parallel": {"tensor": 2}},
    "tp2-sp": {"parallel": {"tensor": 2, "sequence": True}},
    "pp2": {"parallel": {"pipeline": 2}},
    "tp2-pp2": {"parallel": {"tensor": 2, "pipeline": 2}},
    "tp2-pp2-sp": {"parallel": {"tensor": 2, "pipeline": 2, "sequence": True}},
    "vpp": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "tp2-vpp-sp": {"parallel": {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "sequence": True}},
    "dp2-distributed-optimizer": {"parallel": {"data": 2}},
    "dp2-plain-optimizer": {"parallel": {"data": 2}, "optimizer": {**OPTIMIZER, "distributed": False}},
    "tp2-dp2": {"parallel": {"tensor": 2, "data": 2}},
    "cp2": {"parallel": {"context": 2}},
    "tp2-cp2-sp": {"parallel": {"tensor": 2, "context": 2, "sequence": True}},
    "pp2-cp2": {"parallel": {"pipeline": 2, "context": 2}},
    "micro-batch-1": {"micro_batch": 1},
    "micro-batch-8": {"micro_batch": 8},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.fixture(scope="module")
def alone(case: Path) -> Path:
    train(case, case / "alone", save_interval_steps=8, keep_last_checkpoints=9)
    return case / "alone"


def test_learns(alone: Path) -> None:
    losses = curve(alone)
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_curve_under_every_layout(case: Path, alone: Path, layout: str) -> None:
    train(case, case / layout, **LAYOUTS[layout])
    assert curve(case / layout) == pytest.approx(curve(alone), abs=1e-5)
    norms = curve(alone, "train/grad_norm")
    assert curve(case / layout, "train/grad_norm") == pytest.approx(norms, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("granularity", ["selective", "full"])
def test_recomputing_activations_changes_nothing(case: Path, alone: Path, granularity: str) -> None:
    output = case / granularity
    train(case, output, recompute=granularity)
    assert curve(output) == curve(alone)
    assert weights(output, STEPS) == weights(alone, STEPS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"tensor": 2, "pipeline": 2}),
        ({}, {"data": 2}),
        ({"data": 2}, {}),
        ({"data": 2}, {"tensor": 2, "data": 2}),
        ({"tensor": 2, "sequence": True}, {"pipeline": 2, "virtual_pipeline": 2}),
        ({"pipeline": 2, "virtual_pipeline": 2}, {"context": 2, "data": 2}),
    ],
    ids=["1-to-tp2pp2", "1-to-dp2", "dp2-to-1", "dp2-to-tp2dp2", "tp2sp-to-vpp", "vpp-to-cp2dp2"],
)
def test_resumed_under_another_layout(
    case: Path,
    alone: Path,
    before: dict[str, object],
    after: dict[str, object],
    request: pytest.FixtureRequest,
) -> None:
    """Parameters, moments (divided over data-parallel ranks by the distributed optimizer), schedule and data go on."""
    begun = alone if not before else case / f"begun-{'-'.join(before)}"
    if not begun.exists():
        train(case, begun, parallel=before, save_interval_steps=8, keep_last_checkpoints=9)
    output = case / str(request.node.callspec.id)
    shutil.copytree(begun, output)
    for step in (16, STEPS):
        shutil.rmtree(output / "checkpoints" / f"iter_{step:07d}")
    train(case, output, parallel=after, save_interval_steps=8)
    assert curve(output) == pytest.approx(curve(alone), abs=1e-5)
    norms = curve(alone, "train/grad_norm")
    assert curve(output, "train/grad_norm") == pytest.approx(norms, rel=1e-5, abs=1e-5)
