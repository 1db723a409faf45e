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
    "tp2-cp2-sp": {
        "parallel": {"tensor": 2, "context": 2, "sequence": True},
        "micro_batch": 8,
    },  # dear on gloo
    "pp2-cp2": {"parallel": {"pipeline": 2, "context": 2}},
    "micro-batch-2": {"micro_batch": 2},
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


# A GPU's way to reduce gradients: bucket by bucket, while the backward pass goes on. Buckets of a few parameters.
OVERLAPPED = """
import tsugiki.pretrain.training.optimizer as room
original = room.DistributedDataParallelConfig
room.has_gpu = lambda: True
room.DistributedDataParallelConfig = lambda **options: original(bucket_size=4000, **options)
def counted(*arguments, original=room.DistributedDataParallel, **options):
    wrapped = original(*arguments, **options)
    assert all(group.ddp_config.overlap_grad_reduce for group in wrapped.bucket_groups)
    # Megatron makes several buckets in the first pipeline stage and its first chunk only.
    alone = options["disable_bucketing"] or room.parallel_state.get_pipeline_model_parallel_rank() > 0
    assert alone or len(wrapped.bucket_groups) > 1
    return wrapped
room.DistributedDataParallel = counted
"""


@pytest.mark.parametrize(
    "parallel",
    [{"tensor": 2, "sequence": True, "data": 2}, {"pipeline": 2, "virtual_pipeline": 2, "data": 2}],
    ids=["tp2sp-dp2", "vpp-dp2"],
)
def test_gradients_reduced_during_the_backward_pass(
    case: Path, alone: Path, tmp_path: Path, parallel: dict[str, object]
) -> None:
    """As one process trains; validated, saved, and resumed in the middle."""
    options = {
        "parallel": parallel, "micro_batch": 2, "save_interval_steps": 8, "validation_interval_steps": 8,
    }  # fmt: skip
    train(case, tmp_path, fault=OVERLAPPED, keep_last_checkpoints=9, **options)
    assert curve(tmp_path) == pytest.approx(curve(alone), abs=1e-5)
    saved, losses = weights(tmp_path, STEPS), curve(tmp_path)
    for step in (16, STEPS):
        shutil.rmtree(tmp_path / "checkpoints" / f"iter_{step:07d}")
    train(case, tmp_path, fault=OVERLAPPED, **options)
    assert curve(tmp_path) == losses and weights(tmp_path, STEPS) == saved


NOT_WAITED_FOR = """
import sys, torch
from tsugiki.pretrain.runtime.megatron_cpu import import_megatron
import_megatron()
original = torch.cuda.synchronize
def refused(*arguments):
    assert "p2p_communication" not in sys._getframe(1).f_code.co_filename, "the host waits for a message"
    return original(*arguments)
torch.cuda.synchronize = refused
"""


def test_messages_between_stages_do_not_stop_the_host(case: Path, alone: Path, tmp_path: Path) -> None:
    """Megatron waits for the whole device after each, for torch before 1.13."""
    train(case, tmp_path, fault=NOT_WAITED_FOR, parallel={"pipeline": 2})
    assert curve(tmp_path) == pytest.approx(curve(alone), abs=1e-5)


@pytest.mark.parametrize(("granularity", "some"), [("selective", None), ("full", None), ("full", 3)])
def test_recomputing_activations_changes_nothing(
    case: Path, alone: Path, granularity: str, some: int | None
) -> None:
    output = case / f"{granularity}-{some}"
    train(case, output, recompute=granularity, recompute_layers=some)
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
