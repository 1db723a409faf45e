"""Work, time and storage of a training run, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_flops import training_flops_per_token
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import TrainConfig


@dataclass(frozen=True)
class Gpu:
    """An accelerator to plan for.

    Attributes:
        name: what ``--gpu`` calls it.
        memory_bytes: memory that the driver reports as total.
        peak_flops: dense bf16 matrix FLOP/s of the data sheet.
        peak_fp8_flops: dense fp8 FLOP/s, None without fp8 units.
    """

    name: str
    memory_bytes: int
    peak_flops: float
    peak_fp8_flops: float | None = None


# NVIDIA data sheets, dense (without sparsity), SXM boards. Memory: total_memory as CUDA reports it, which is
# less than the number on the box (H100: 79.1 of 80 GiB, H200: 139.8 of 141 GB).
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", int(39.4 * 2**30), 312e12),
        Gpu("a100-80gb", int(79.1 * 2**30), 312e12),
        Gpu("h100", int(79.1 * 2**30), 989e12, 1979e12),
        Gpu("h200", int(139.8 * 2**30), 989e12, 1979e12),
        Gpu("b200", int(178.0 * 2**30), 2250e12, 4500e12),
        Gpu("l40s", int(44.4 * 2**30), 362e12, 733e12),
    )
}


def find_gpu(name: str) -> Gpu:
    """The accelerator of that name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in GPUS:
        raise ConfigError("unknown --gpu", got=name, expected=f"one of {', '.join(GPUS)}")
    return GPUS[name]


@dataclass(frozen=True)
class Work:
    """What a training run computes and stores.

    Attributes:
        tokens: tokens trained on, whole steps only.
        steps: optimizer steps.
        flops: model FLOPs (forward and backward, recomputation not counted), attention in full.
        causal_flops: the same with attention counted as causal.
        hours: wall clock at the assumed MFU (share of the data-sheet peak spent on ``flops``).
        gpu_hours: hours x GPUs.
        checkpoint_bytes: one training checkpoint, weights and optimizer.
        storage_bytes: all checkpoints kept, the grafted start and the exported model.
    """

    tokens: int
    steps: int
    flops: float
    causal_flops: float
    hours: float
    gpu_hours: float
    checkpoint_bytes: int
    storage_bytes: int


def recomputed_share(spec: ModelSpec, train: TrainConfig) -> float:
    """Layers that are recomputed whole, divided by all."""
    if train.recompute != "full":
        return 0.0
    chunks = train.parallel.pipeline * (train.parallel.virtual_pipeline or 1)
    return 1.0 if train.recompute_layers is None else min(train.recompute_layers * chunks / spec.layers, 1.0)


def training_work(
    spec: ModelSpec, train: TrainConfig, total_tokens: int, gpu: Gpu, mfu: float, world_size: int
) -> Work:
    """Work of continued pretraining on ``total_tokens``."""
    step_tokens = train.global_batch * train.sequence_length
    steps = total_tokens // step_tokens
    tokens = steps * step_tokens
    full = training_flops_per_token(spec, train.sequence_length, causal=False) * tokens
    causal = training_flops_per_token(spec, train.sequence_length, causal=True) * tokens
    peak = gpu.peak_fp8_flops if train.precision == "fp8" and gpu.peak_fp8_flops else gpu.peak_flops
    # Recomputing repeats a forward pass, which the MFU of a measured run does not contain: full recompute
    # makes 4 products of 3.
    repeated = 1 + recomputed_share(spec, train) / 3
    hours = full * repeated / (world_size * peak * mfu) / 3600
    # bf16: 2 (weights) + 4 (fp32 copy) + 8 (two moments) bytes a parameter; fp32 needs no copy.
    per_parameter = 12 if train.precision == "fp32" else 14
    weights = spec.parameters * (4 if train.precision == "fp32" else 2)
    checkpoint = spec.parameters * per_parameter
    kept_for_ever = steps // train.keep_checkpoints_every_steps if train.keep_checkpoints_every_steps else 0
    # While a new checkpoint is written the oldest is still there.
    kept = min(train.keep_last_checkpoints + 1, -(-steps // train.save_interval_steps)) + kept_for_ever
    return Work(
        tokens=tokens,
        steps=steps,
        flops=full,
        causal_flops=causal,
        hours=hours,
        gpu_hours=hours * world_size,
        checkpoint_bytes=checkpoint,
        storage_bytes=kept * checkpoint + 2 * weights,
    )
