"""One rank's part of writing a checkpoint: its shards, its files and their checksums."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.exchange_utils import determine_main_replica_uniform_distribution
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter

from tsugiki.experiment.files import sha256_file

ShardedState = dict[str, Any]


class Shards(TorchDistSaveShardedStrategy):
    """Takes the shards of this rank from Megatron; `write` writes them.

    Args:
        copy: take copies in host memory, which training does not change.
        group: process group of the write; None = all ranks' own.
    """

    def __init__(self, *, copy: bool, group: Any) -> None:
        super().__init__("torch_dist", 1, thread_count=1)
        self._copy, self._group = copy, group
        self._directory = Path()
        self._shards: dict[str, Any] = {}

    def save(self, sharded_state_dict: ShardedState, checkpoint_dir: Path) -> None:
        """Take this rank's share of the shards; objects are serialised here.

        Data-parallel ranks hold the same tensors, and Megatron has the first of them write all unless it is told how
        to divide them; that takes an exchange of their descriptions within the group.
        """
        alike = parallel_state.get_data_parallel_group(with_context_parallel=True)
        distribute_main_replicas_with_precomputed_distribution(
            sharded_state_dict, alike, determine_main_replica_uniform_distribution(sharded_state_dict, alike)
        )
        flat, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        if self._copy:
            for shards in flat.values():
                for shard in shards:
                    if isinstance(shard, ShardedTensor):
                        shard.data = _host_copy(shard.data)
            torch.cuda.synchronize()
        self._shards = mcore_to_pyt_state_dict(flat, False)
        self._directory = Path(checkpoint_dir)

    def write(self) -> None:
        """Write; an error on one rank is raised on all."""
        with Quiet():
            torch.distributed.checkpoint.save(
                self._shards,
                storage_writer=FileSystemWriter(self._directory, single_file_per_rank=True, sync_files=True),
                planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
                process_group=self._group,
            )


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor.detach().clone()
    # Page-locked, so that the copies overlap; the caller synchronises.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor.detach(), non_blocking=True)


class Write:
    """A checkpoint on its way; `ended` is set when this rank's files are written or have failed."""

    def __init__(
        self,
        iteration: int,
        facts: dict[str, Any],
        target: Path,
        write: Callable[[], None],
        started: float,
    ) -> None:
        self.iteration, self.facts, self.target, self.started = iteration, facts, target, started
        self._write: Callable[[], None] | None = write
        self.files: dict[str, dict[str, Any]] = {}
        self.problem = ""
        self.blocking_seconds = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        """Write this rank's files and take their checksums."""
        rank = torch.distributed.get_rank()
        try:
            assert self._write is not None
            self._write()
            own = (f"__{rank}_", *(("common.pt", "metadata.json", ".metadata") if rank == 0 else ()))
            self.files = {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in sorted(self.target.iterdir())
                if path.name.startswith(own)
            }
        except BaseException as error:  # a thread's error must reach the training: raised by finish()
            self.problem = reason(error)
        self._write = None  # free the copies
        self.ended.set()


def reason(error: BaseException) -> str:
    """The end of an error's text."""
    text = str(error).strip()
    return text[-2000:] if text else repr(error)


class Quiet:
    """Megatron and torch warn about their own internals on every save."""

    def __enter__(self) -> None:
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("megatron.core.dist_checkpointing").setLevel(logging.ERROR)

    def __exit__(self, *arguments: Any) -> None:
        self._filters.__exit__(*arguments)
