"""Which layouts are valid, which fit, and which of those to prefer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tsugiki.experiment.model.model_flops import forward_flops_per_token
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import ParallelConfig, TrainConfig
from tsugiki.pretrain.planning.flops import Gpu, recomputed_share
from tsugiki.pretrain.planning.memory import Kernels, memory_per_stage
from tsugiki.pretrain.planning.problems import layout_problems

USABLE = 0.92
"""Share of a GPU's memory that a plan may use: CUDA context and NCCL buffers take 1.5 to 3 GB, the
allocator's fragmentation a few per cent."""


@dataclass(frozen=True)
class Machine:
    """What to plan for.

    Attributes:
        gpu: the accelerator.
        gpus_per_node: GPUs that share the fast links of one node.
        mfu: share of the data-sheet peak that the training reaches.
    """

    gpu: Gpu
    gpus_per_node: int = 8
    mfu: float = 0.4

    @property
    def usable_bytes(self) -> int:
        """Bytes of one GPU that a plan may use."""
        return int(self.gpu.memory_bytes * USABLE)


@dataclass(frozen=True)
class Proposal:
    """A layout that fits.

    Attributes:
        train: the training configuration with this layout.
        world_size: GPUs.
        gpu_memory_bytes: the fullest GPU of every pipeline stage.
        relative_time: estimated time of a step, relative to an ideal one on the same GPUs.
    """

    train: TrainConfig
    world_size: int
    gpu_memory_bytes: list[int]
    relative_time: float

    def to_json(self) -> dict[str, object]:
        """The layout for scripts, as keys of the configuration."""
        parallel = self.train.parallel
        return {
            "world_size": self.world_size,
            "train.parallel.tensor": parallel.tensor,
            "train.parallel.pipeline": parallel.pipeline,
            "train.parallel.context": parallel.context,
            "train.parallel.data": parallel.data,
            "train.parallel.sequence": parallel.sequence,
            "train.recompute": self.train.recompute,
            "train.micro_batch": self.train.micro_batch,
            "gpu_memory_bytes": self.gpu_memory_bytes,
            "relative_time": round(self.relative_time, 3),
        }

    def to_text(self) -> str:
        """One line, in the form of ``--set`` options."""
        parallel = self.train.parallel
        return (
            f"{self.world_size:>5} GPUs  tensor {parallel.tensor}  pipeline {parallel.pipeline}  "
            f"context {parallel.context}  data {parallel.data}  "
            f"sequence {str(parallel.sequence).lower():<5}  "
            f"recompute {self.train.recompute:<9}  micro_batch {self.train.micro_batch}  "
            f"{max(self.gpu_memory_bytes) / 2**30:6.1f} GiB  relative time {self.relative_time:.2f}"
        )


def relative_time(spec: ModelSpec, train: TrainConfig, data_parallel_size: int, machine: Machine) -> float:
    """Estimated time of a step relative to an ideal one; a ranking, not a prediction.

    Pipeline bubble (p - 1) / (v m) for m micro-batches and v chunks (arXiv 2104.04473), and every stage
    waits for the last one, which has the output layer besides its layers; full recompute repeats a
    forward pass (4/3), selective a few per cent of it. Tensor and context parallelism cost
    communication in every layer: 3 % per doubling inside a node, six times that across nodes (rule of
    thumb, not measured).
    """
    parallel = train.parallel
    micro_batches = train.global_batch // (train.micro_batch * data_parallel_size)
    bubble = (parallel.pipeline - 1) / ((parallel.virtual_pipeline or 1) * micro_batches)
    head = 2.0 * spec.hidden_size * spec.vocabulary_size
    whole = forward_flops_per_token(spec, train.sequence_length, causal=False)
    slowest = (whole - head) / parallel.pipeline + head
    balance = slowest * parallel.pipeline / whole
    recompute = 1.03 if train.recompute == "selective" else 1 + recomputed_share(spec, train) / 3
    width = parallel.tensor * parallel.context
    communication = 0.03 * math.log2(width) * (1 if width <= machine.gpus_per_node else 6)
    # Without sequence parallelism norms are computed on every rank.
    repeated = 0.02 if parallel.tensor > 1 and not parallel.sequence else 0.0
    # Small products fill a GPU badly.
    shape = min(1.0, train.micro_batch * train.sequence_length * spec.hidden_size / parallel.tensor / 2**22)
    small = 0.05 * (1 - shape)
    return balance * (1 + bubble) * recompute * (1 + communication + repeated + small)


def proposals(
    spec: ModelSpec, train: TrainConfig, world_size: int, machine: Machine, kernels: Kernels, limit: int = 5
) -> list[Proposal]:
    """Layouts that fit, best first: on as many GPUs as asked for, else on the next power of two that does."""
    larger = [1 << (world_size.bit_length() + doubling) for doubling in range(8)]
    for world in (world_size, *larger):
        found = [
            Proposal(candidate, world, memory, relative_time(spec, candidate, data_parallel_size, machine))
            for candidate, data_parallel_size in _candidates(spec, train, world)
            if not layout_problems(candidate, spec, data_parallel_size)
            and max(
                memory := [
                    item.total for item in memory_per_stage(spec, candidate, data_parallel_size, kernels)
                ]
            )
            <= machine.usable_bytes
        ]
        if found:
            found.sort(key=lambda item: (item.relative_time, max(item.gpu_memory_bytes)))
            return found[:limit]
    return []


def _candidates(spec: ModelSpec, train: TrainConfig, world: int) -> Iterator[tuple[TrainConfig, int]]:
    for tensor in (1, 2, 4, 8):
        for pipeline in (size for size in range(1, spec.layers + 1) if spec.layers % size == 0):
            model = tensor * pipeline * train.parallel.context
            if world % model:
                continue
            data_parallel_size = world // model
            for recompute in ("none", "selective", "full"):
                for micro_batch in sorted({1, train.micro_batch}):
                    if train.global_batch % (micro_batch * data_parallel_size):
                        continue
                    parallel = ParallelConfig(
                        tensor=tensor,
                        pipeline=pipeline,
                        context=train.parallel.context,
                        data=data_parallel_size,
                        sequence=tensor > 1,
                    )
                    yield (
                        train.model_copy(
                            update={
                                "parallel": parallel,
                                "recompute": recompute,
                                "recompute_layers": None,
                                "micro_batch": micro_batch,
                            }
                        ),
                        data_parallel_size,
                    )
