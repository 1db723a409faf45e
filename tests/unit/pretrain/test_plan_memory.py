"""The memory plan against what Megatron's model really holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import OptimizerConfig, ParallelConfig, TrainConfig
from tsugiki.pretrain.planning.memory import (
    CPU_KERNELS,
    TORCH_KERNELS,
    layers_in_flight,
    memory_per_stage,
    padded_rows,
    stage_memory,
    stage_parameters,
)

HERE = Path(__file__).parents[2] / "support"
ROOT = HERE.parents[1]
SEQUENCE, MICRO_BATCH = 64, 2


def megatron(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(HERE / "plan_megatron.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": "/tmp"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def tiny(kv_heads: int = 4, layers: int = 2, vocabulary: int = 128) -> ModelSpec:
    return ModelSpec(
        family="llama", layers=layers, hidden_size=64, ffn_size=96, heads=4, kv_heads=kv_heads, head_dim=16,
        vocabulary_size=vocabulary, max_positions=128,
    )  # fmt: skip


@pytest.mark.slow
def test_activations_are_what_autograd_keeps() -> None:
    """Every precision, recomputation, grouping, depth and vocabulary: within 1 % of the saved storages."""
    measured = megatron("activations")
    assert len(measured) == 64
    for case in measured:
        spec = tiny(case["kv_heads"], case["layers"], case["vocabulary"])
        train = TrainConfig(
            sequence_length=SEQUENCE,
            micro_batch=MICRO_BATCH,
            global_batch=MICRO_BATCH,
            precision=case["precision"],
            recompute=case["recompute"],
            recompute_layers=case["recompute_layers"],
        )
        planned = stage_memory(spec, train, 1, 0, CPU_KERNELS)
        # Of the logits, autograd keeps the fp32 exponentials.
        expected = planned.activations + SEQUENCE * MICRO_BATCH * case["vocabulary"] * 4
        assert case["bytes"] == pytest.approx(expected, rel=0.01), case


@pytest.mark.slow
def test_state_is_what_a_process_holds() -> None:
    """Weights, gradients, optimizer: within 1 % of all tensors alive, replicated and divided."""
    measured = megatron("state")
    assert len(measured) == 8
    for case in measured:
        train = TrainConfig(
            precision=case["precision"],
            global_batch=8,
            optimizer=OptimizerConfig(distributed=case["distributed"]),
        )
        planned = stage_memory(tiny(vocabulary=1024), train, case["data"], 0)
        expected = planned.weights + planned.gradients + planned.optimizer
        assert case["bytes"] == pytest.approx(expected, rel=0.01), case


def test_state_of_mixed_precision_is_18_bytes_a_parameter() -> None:
    """bf16 weights 2, fp32 gradients 4, fp32 copy and moments 12; the last divided among data-parallel ranks."""
    train = TrainConfig(precision="bf16", global_batch=8)
    one = stage_memory(tiny(), train, 1, 0)
    four = stage_memory(tiny(), train, 4, 0)
    state = one.weights + one.gradients + one.optimizer
    assert state == 18 * one.parameters
    assert one.optimizer == 4 * four.optimizer
    whole = train.model_copy(update={"optimizer": train.optimizer.model_copy(update={"distributed": False})})
    assert stage_memory(tiny(), whole, 4, 0).optimizer == one.optimizer


def test_published_example_of_a_layer() -> None:
    """The worked example of the module: 148,104 bytes per token and layer of Llama-2 7B."""
    spec = ModelSpec.from_hf(ROOT / "configs/models/llama-2-7b.json")
    short = TrainConfig(sequence_length=8, micro_batch=1, global_batch=1)
    deep = stage_memory(spec, short, 1, 0).activations
    shallow = stage_memory(spec.model_copy(update={"layers": 31}), short, 1, 0).activations
    assert (deep - shallow) / 8 == 2 * (4 * 4096 + 6 * 4096 + 3 * 11008) + 4 * 32 + 8 == 148_104


@pytest.mark.slow
def test_compiled_norm_keeps_its_input_and_rotation_nothing() -> None:
    """What torch's compiler leaves for the backward pass, as `TORCH_KERNELS` counts it.

    The choice is AOTAutograd's, before any code is made for a device.
    """
    import torch

    from tsugiki.pretrain.model.kernels import rms_norm, rotate_both

    def kept(function: Any, *arguments: Any) -> int:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            torch.compile(function, backend="aot_eager")(*arguments)
        return sum(storages.values())

    tokens, width = 96, 128
    hidden = torch.randn(tokens, 1, width, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(width, dtype=torch.bfloat16, requires_grad=True)
    assert TORCH_KERNELS.fused_norm
    assert kept(rms_norm, hidden, weight, 1e-6) == 2 * width * tokens + 4 * tokens + 2 * width
    heads = [torch.randn(tokens, 1, count, 32, dtype=torch.bfloat16, requires_grad=True) for count in (4, 2)]
    angles = [torch.randn(tokens, 1, 1, 16, dtype=torch.bfloat16) for _ in range(2)]
    assert kept(rotate_both, *heads, *angles) == 2 * 2 * 16 * tokens


def test_first_pipeline_stage_holds_the_most_micro_batches() -> None:
    parallel = ParallelConfig(pipeline=4)
    assert [layers_in_flight(parallel, stage, 8, 100) for stage in range(4)] == [8, 6, 4, 2]
    # Fewer micro-batches than stages: never more than there are.
    assert layers_in_flight(parallel, 0, 8, 2) == 4
    interleaved = ParallelConfig(pipeline=4, virtual_pipeline=2)
    # 2 x 3 + 4 + 1 = 11 chunks of one layer.
    assert layers_in_flight(interleaved, 0, 8, 100) == 11


def test_stages_add_up_to_the_model() -> None:
    spec = tiny(layers=4, vocabulary=1000)
    parallel = ParallelConfig(tensor=2, pipeline=2, sequence=True)
    per_stage = [stage_parameters(spec, parallel, stage) for stage in range(2)]
    replicated = (2 * 4 + 1) * 64  # norm weights are on both tensor ranks
    padding = (padded_rows(1000, 2) - 1000) * 64 * 2
    assert 2 * sum(per_stage) - replicated - padding == spec.parameters


def test_tied_embeddings_are_on_both_ends() -> None:
    spec = ModelSpec.from_hf(ROOT / "configs/models/gemma-7b.json")
    ends = [stage_parameters(spec, ParallelConfig(pipeline=2), stage) for stage in range(2)]
    assert sum(ends) - spec.parameters == spec.vocabulary_size * spec.hidden_size
    assert stage_parameters(spec, ParallelConfig(), 0) == spec.parameters


def test_sequence_parallelism_and_recomputation_save_memory() -> None:
    spec = ModelSpec.from_hf(ROOT / "configs/models/llama-2-7b.json")

    def peak(recompute: str, sequence: bool) -> int:
        parallel = ParallelConfig(tensor=2, sequence=sequence)
        train = TrainConfig(parallel=parallel, recompute=recompute, global_batch=16)  # type: ignore[arg-type]
        return memory_per_stage(spec, train, 1)[0].total

    assert peak("none", False) > peak("none", True) > peak("selective", True) > peak("full", True)


@pytest.mark.slow
def test_every_rank_of_swallow_70b_can_be_built() -> None:
    """All 256 ranks on the meta device: the layout is valid and the plan knows each rank's parameters."""
    found = megatron("ranks", "configs/recipes/swallow-70b.yaml")
    assert len(found["ranks"]) == 256
    spec = ModelSpec.from_hf(ROOT / "configs/models/llama-2-70b.json")
    spec = spec.model_copy(update={"vocabulary_size": 43_176})
    parallel = ParallelConfig(tensor=8, pipeline=8, data=4, sequence=True)
    planned = [stage_parameters(spec, parallel, stage) for stage in range(8)]
    assert [rank["parameters"] for rank in found["ranks"]] == [
        planned[rank["stage"]] for rank in found["ranks"]
    ]
    places = {(rank["stage"], rank["tensor"], rank["data"]) for rank in found["ranks"]}
    assert len(places) == 256
    replica = [rank for rank in found["ranks"] if rank["data"] == 0]
    whole = sum(rank["sharded"] for rank in replica)
    whole += sum(rank["parameters"] - rank["sharded"] for rank in replica if rank["tensor"] == 0)
    assert whole == found["padded_parameters"] == spec.parameters + (43_200 - 43_176) * 2 * 8192
    assert padded_rows(43_176, 8) == 43_200
