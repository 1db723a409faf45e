"""The memory plan against the training code's own steps, on every rank of parallel layouts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import ParallelConfig, TrainConfig
from tsugiki.pretrain.planning.memory import (
    CPU_KERNELS,
    TORCH_KERNELS,
    Kernels,
    StageMemory,
    padded_rows,
    stage_memory,
)

SHAPE = {
    "layers": 4, "hidden_size": 128, "ffn_size": 320, "heads": 4, "kv_heads": 2, "head_dim": 32,
    "vocabulary_size": 500, "max_positions": 512,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**SHAPE, "family": "llama"},
    "mistral": {**SHAPE, "family": "mistral", "sliding_window": 48},
    # Heads as wide as Gemma-7B's: together wider than the model.
    "gemma": {
        **SHAPE, "family": "gemma", "kv_heads": 4, "head_dim": 64, "norm_offset": 1.0, "activation": "gelu_tanh",
        "tied_embeddings": True, "embedding_scale": 11.3,
    },
}  # fmt: skip
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2": {"tensor": 2},
    "tp2-sp": {"tensor": 2, "sequence": True},
    "pp2": {"pipeline": 2},
    "pp4": {"pipeline": 4},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "tp2-pp2-sp": {"tensor": 2, "pipeline": 2, "sequence": True},
    "vpp": {"pipeline": 2, "virtual_pipeline": 2},
    "cp2": {"context": 2},
}
RECOMPUTE = ("none", "selective", "full")
# What a GPU does and a CPU can do, too.
HALF_FAST = dataclasses.replace(TORCH_KERNELS, fused_norm=False, grouped_attention=False)


def case(model: str, recompute: str, **changes: Any) -> dict[str, Any]:
    """A measurement: 4 micro batches of 2 x 128 tokens in bf16 unless said otherwise."""
    shape = {name: changes.pop(name) for name in list(changes) if name in SHAPE}
    return {
        "model": {**MODELS[model], **shape}, "recompute": recompute, "precision": "bf16", "sequence": 128,
        "micro_batch": 2, "micro_batches": 4, "fast": False, **changes,
    }  # fmt: skip


def measure(wanted: dict[str, list[dict[str, Any]]], *, alone: bool) -> list[tuple[str, Any, Any]]:
    """(layout, case, measures) of every rank of every layout."""
    request = [{"parallel": LAYOUTS[name], "cases": cases, "alone": alone} for name, cases in wanted.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).parents[1] / "support" / "memory_ranks.py"), json.dumps(request)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    return [
        (name, item, rank)
        for (name, cases), found in zip(wanted.items(), answers, strict=True)
        for item, ranks in zip(cases, found, strict=True)
        for rank in ranks
    ]


def planned(layout: str, item: dict[str, Any], stage: int, kernels: Kernels) -> StageMemory:
    train = TrainConfig(
        parallel=ParallelConfig(**LAYOUTS[layout]), precision=item["precision"], recompute=item["recompute"],
        sequence_length=item["sequence"], micro_batch=item["micro_batch"],
        global_batch=item["micro_batch"] * item["micro_batches"],
    )  # fmt: skip
    return stage_memory(ModelSpec.model_validate(item["model"]), train, 1, stage, kernels)


def scores(layout: str, item: dict[str, Any], stage: int) -> int:
    """Bytes that autograd keeps of the logits, which the plan counts as logits: one value each."""
    parallel = ParallelConfig(**LAYOUTS[layout])
    if stage < parallel.pipeline - 1:
        return 0
    rows = padded_rows(item["model"]["vocabulary_size"], parallel.tensor)
    if item["fast"]:  # without the padding
        rows = item["model"]["vocabulary_size"]
    tokens = item["micro_batch"] * item["sequence"] // parallel.context
    return tokens * rows // parallel.tensor * (2 if item["fast"] else 4)


@pytest.fixture(scope="module")
def held() -> list[tuple[str, Any, Any]]:
    every = [case(model, recompute) for model in ("llama", "gemma") for recompute in RECOMPUTE]
    every.append(case("mistral", "none"))  # with recomputation it keeps what a Llama keeps
    llama = [case("llama", recompute) for recompute in RECOMPUTE]
    fast = [case(model, recompute, fast=True) for model in ("llama", "gemma") for recompute in RECOMPUTE]
    return measure(
        {
            "tp2": every,
            "tp2-sp": every + fast,
            "pp2": every,
            "tp2-pp2-sp": every,
            "vpp": llama,
            "cp2": [*llama, case("gemma", "none")],
        },
        alone=False,
    )


def test_kept_activations_on_every_rank(held: list[tuple[str, Any, Any]]) -> None:
    """Storages of autograd and outputs in flight, at the fullest moment of the schedule.

    Real processes exchange them over gloo. Within 1 %; with context parallelism, where the masks of a CPU
    are not counted, within 2 %.
    """
    assert len(held) == 7 * (2 + 2 + 2 + 4) + 6 * 2 + 3 * 2 + 4 * 2
    for layout, item, rank in held:
        plan = planned(layout, item, rank["stage"], HALF_FAST if item["fast"] else CPU_KERNELS)
        expected = plan.activations + scores(layout, item, rank["stage"])
        assert rank["kept"] == pytest.approx(expected, rel=0.02 if layout == "cp2" else 0.01), (
            layout,
            item,
            rank,
        )


def test_state_on_every_rank(held: list[tuple[str, Any, Any]]) -> None:
    """Weights, gradients and optimizer of each rank's part; tied embeddings on both ends of a pipeline."""
    for layout, item, rank in held:
        plan = planned(layout, item, rank["stage"], CPU_KERNELS)
        expected = plan.weights + plan.gradients + plan.optimizer
        assert rank["state"] == pytest.approx(expected, rel=0.001), (layout, item, rank)


def test_peak_of_a_step() -> None:
    """All that torch's allocator gives out in a step, against activations and the larger of logits and workspace.

    In fp32, and in bf16 where the vocabulary is what counts: oneDNN's scratch memory for bf16 products is a
    few per cent of models this small. Sizes are such that each part of the plan is the largest somewhere.
    """
    lengths = [{"sequence": 96, "micro_batch": 1}, {"sequence": 128, "micro_batch": 2}]
    few = {"precision": "fp32", "sequence": 32, "micro_batch": 1, "vocabulary_size": 4096}
    single = [
        *(
            case("llama", recompute, precision="fp32", **length)
            for recompute in RECOMPUTE
            for length in lengths
        ),
        *(
            case("gemma", recompute, precision="fp32", **length)
            for recompute in RECOMPUTE
            for length in lengths
        ),
        case("mistral", "none", precision="fp32"),
        *(case("llama", recompute, layers=2, vocabulary_size=4096) for recompute in ("none", "full")),
        # Few tokens, many rows: the gradient of the embedding is the last and the largest.
        case("gemma", "full", **few),
    ]
    divided = [
        case(model, recompute, precision="fp32")
        for model in ("llama", "gemma")
        for recompute in ("none", "full")
    ]
    wanted = {
        "tp1": single, "tp2-sp": divided, "tp2-pp2": divided, "pp2": [*divided, case("llama", "full", **few)],
        "pp4": divided[:2], "vpp": divided[:2],
        # Here attention is the fullest moment: its keys and values are those of the whole sequence.
        "cp2": [case("gemma", "selective", precision="fp32")],
    }  # fmt: skip
    found = measure(wanted, alone=True)
    assert len(found) == len(single) + 4 * (2 + 4 + 2) + 2 + 2 * 4 + 2 * 2 + 2
    largest = set()
    for layout, item, rank in found:
        plan = planned(layout, item, rank["stage"], CPU_KERNELS)
        largest.add("logits" if plan.logits > plan.workspace else "workspace")
        expected = plan.total - plan.weights - plan.gradients - plan.optimizer
        assert rank["peak"] == pytest.approx(expected, rel=0.03), (layout, item, rank)
    assert largest == {"logits", "workspace"}
