"""Whether Megatron builds a layout: one verdict a line for one request a line, in a process of its own.

A rank of a world of any size is made with torch's fake process group, whose collectives do nothing. Accepted is a
layout for which nothing refuses: the division of the world into groups, the transformer's configuration, the model of
the first and of the last rank with its embedding or output layer, the wrapper and the optimizer that training uses, and
the division of the batch into micro batches.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch.utils._device import _device_constructors

_device_constructors()  # torch.device("meta") must know the factories from before the CPU shim replaces them

from tsugiki.pretrain.runtime import megatron_cpu  # noqa: E402

megatron_cpu.install()

from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.num_microbatches_calculator import ConstantNumMicroBatchesCalculator  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from tsugiki.experiment.model.model_spec import ModelSpec  # noqa: E402
from tsugiki.pretrain.config import OptimizerConfig, ParallelConfig  # noqa: E402
from tsugiki.pretrain.model.gpt import build_model  # noqa: E402
from tsugiki.pretrain.runtime.process_groups import divide  # noqa: E402
from tsugiki.pretrain.training.optimizer import Optimizer, wrap_models  # noqa: E402


def build(request: dict[str, Any], rank: int, size: int) -> None:
    """Build a rank; raises whatever refuses."""
    parallel, spec = ParallelConfig(**request["parallel"]), ModelSpec(**request["spec"])
    torch.distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        divide(parallel)
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        models = build_model(spec, parallel)
        Optimizer(OptimizerConfig(), wrap_models(models, distributed_optimizer=True), "fp32")
        # Megatron's own division of the batch; it refuses what is not a whole number of passes.
        ConstantNumMicroBatchesCalculator(
            request["global_batch"], request["micro_batch"], request["data"], False, rank
        )
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def verdict(request: dict[str, Any]) -> str:
    """Empty when it was built, else what refused."""
    size = ParallelConfig(**request["parallel"]).model_processes * request["data"]
    try:
        for rank in (0, size - 1):
            build(request, rank, size)
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    for line in sys.stdin:
        print("verdict", json.dumps(verdict(json.loads(line))), flush=True)
