"""Process groups: this rank's place in the layout."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import finalize_model_grads
from torch import Tensor

from tsugiki.pretrain.config import ParallelConfig
from tsugiki.pretrain.planning.divisions import process_problems
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.runtime.world import World

_TIMEOUT = timedelta(minutes=30)


def initialise(
    world: World, parallel: ParallelConfig, seed: int, store: Any = None, timeout: timedelta = _TIMEOUT
) -> None:
    """Join the process group and divide it for the layout.

    Args:
        world: this process.
        parallel: the layout; its `data` is ignored, data-parallel ranks fill the world.
        seed: seed of the generators of every rank.
        store: rendezvous store; None = MASTER_ADDR and MASTER_PORT.
        timeout: how long a rank waits for the others.

    Raises:
        ConfigError: the layout does not fit the number of processes.
    """
    if problems := process_problems(parallel.model_copy(update={"data": None}), world.size):
        raise problems[0].error()
    options: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "timeout": timeout}
    if has_gpu():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    if store is not None:
        options["store"] = store
    torch.distributed.init_process_group("nccl" if has_gpu() else "gloo", **options)
    divide(parallel, timeout)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def divide(parallel: ParallelConfig, timeout: timedelta = _TIMEOUT) -> None:
    """Make the groups of a layout out of the ranks of the process group.

    Args:
        parallel: as in :func:`initialise`.
        timeout: likewise.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=timeout.total_seconds() / 60,
    )


def reports_loss() -> bool:
    """Whether this rank's loss counts in a sum over all ranks: tensor-parallel ranks have the same."""
    return (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
    )


def is_logging_rank() -> bool:
    """Whether this rank reports: the first of the ranks that compute the loss."""
    return reports_loss() and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0


def all_reduce_max(numbers: list[float]) -> list[float]:
    """Every number's largest value over all ranks, so that all of them act alike."""
    values = torch.tensor(numbers, dtype=torch.float64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return values.tolist()


def all_gather_numbers(numbers: list[float]) -> list[list[float]]:
    """The numbers of every rank, in order of ranks; the host waits once."""
    own = torch.tensor(numbers, dtype=torch.float64, device=torch.cuda.current_device())
    everyone = own.new_empty(torch.distributed.get_world_size() * len(numbers))
    torch.distributed.all_gather_into_tensor(everyone, own)
    return everyone.view(-1, len(numbers)).tolist()


def barrier() -> None:
    """Wait for all ranks."""
    all_reduce_max([0.0])


def finalize_gradients(
    models: list[Any], tokens: Tensor, pg_collection: Any = None, force_all_reduce: bool = False
) -> None:
    """Reduce the gradients and divide them by the tokens of the global batch.

    Megatron's function does the same, but has the host wait to see whether there are any tokens.

    Args:
        models: wrapped model chunks.
        tokens: tokens that count on this rank, on the last pipeline stage; [1], becomes their sum.
        pg_collection: Megatron's process groups, None for those of `parallel_state`.
        force_all_reduce: reduce whole gradients although the optimizer is distributed.
    """
    finalize_model_grads(models, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce)
    torch.distributed.broadcast(
        tokens,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    torch.distributed.all_reduce(
        tokens, group=parallel_state.get_data_parallel_group(with_context_parallel=True)
    )
    factor = 1.0 / tokens.clamp(min=1)  # without any the gradients are zero
    for model in models:
        model.scale_gradients(factor)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over data- and context-parallel ranks, then known to all pipeline stages."""
    torch.distributed.all_reduce(
        values, group=parallel_state.get_data_parallel_group(with_context_parallel=True)
    )
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast(
            values,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
    return values
