"""The ranks of the stage `reference`: the first weights read every pair once, forward only.

Ranks are divided as in training. A dataset that is written is not read again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core import parallel_state
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from tsugiki.pretrain.checkpoint.intact import require_intact
from tsugiki.pretrain.checkpoint.state import TrainingState
from tsugiki.pretrain.model.backend import acceleration_of
from tsugiki.pretrain.model.gpt import build_model
from tsugiki.pretrain.runtime.job import TrainJob
from tsugiki.pretrain.runtime.peers import Peers
from tsugiki.pretrain.runtime.process_groups import all_reduce_max, barrier, is_logging_rank, reports_loss
from tsugiki.pretrain.runtime.signals import StopRequest
from tsugiki.pretrain.runtime.world import World
from tsugiki.pretrain.training.guard import Watchdog
from tsugiki.pretrain.training.preference.objective import answer_log_probabilities, pairs_of
from tsugiki.pretrain.training.preference.reference import LogProbabilities, pair_prefixes, save
from tsugiki.pretrain.training.run import Run
from tsugiki.pretrain.training.samples.batches import Batch, BatchLayout
from tsugiki.pretrain.training.samples.packing import Sample, pack, row_of
from tsugiki.pretrain.training.samples.reader import iterators
from tsugiki.pretrain.training.step import forward_step

_MICRO_BATCHES = 8
"""Forward passes of a rank between two signs of life."""


class ReferencePass:
    """Model chunks of one rank, and what they say of pairs.

    Args:
        job: whose graft is the reference.
        world: this process.
        watchdog: hears signs of life.
    """

    def __init__(self, job: TrainJob, world: World, watchdog: Watchdog) -> None:
        self._run = run = Run.load(job, world)
        self._watchdog = watchdog
        config = run.config
        self._models = build_model(
            run.spec, config.parallel, precision=config.precision, acceleration=acceleration_of(config)
        )
        checkpoint = job.graft_dir / "checkpoint"
        require_intact(path for path in checkpoint.iterdir() if path.is_file())
        TrainingState(self._models, None, run.spec.vocabulary_size).load(checkpoint, weights_only=True)
        for model in self._models:
            model.eval()
        self._schedule = get_forward_backward_func()
        self._layout = BatchLayout.of(config, run.mixture.eod_id)

    def run(self, stop: StopRequest) -> bool:
        """Read every dataset of pairs. Returns whether all are written (False: asked to stop)."""
        for prefix in pair_prefixes(self._run.mixture):
            (stopped,) = all_reduce_max([float(stop.requested)])
            if stopped:
                return False
            if (self._run.job.output_dir / f"{prefix}.npy").is_file():
                continue
            barrier()  # none may still be asking for the file when it is written
            found = self._read(self._run.job.tokens_dir / prefix)
            if is_logging_rank():
                print(f"{prefix}: {len(found):,} pairs", flush=True)
                save(self._run.job.output_dir, prefix, found)
            barrier()
        return True

    def _read(self, prefix: Path) -> LogProbabilities:
        """Log-probabilities of the answers of a dataset [pairs, 2], NaN where a pair does not fit; on every rank."""
        length, layout = self._run.config.sequence_length, self._layout
        indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
        lengths = numpy.asarray(indexed.sequence_lengths, numpy.int64).reshape(-1, 2).sum(axis=1)
        fits = numpy.flatnonzero(lengths <= length)
        rows = [fits[row] for row in pack(lengths[fits].tolist(), length)]
        found = torch.zeros(len(lengths), 2, dtype=torch.float64, device=torch.cuda.current_device())

        def sample(number: int) -> Sample:
            pairs = rows[number].tolist() if number < len(rows) else []
            parts = [
                numpy.asarray(indexed[2 * pair + side], numpy.int64) for pair in pairs for side in (0, 1)
            ]
            return row_of(parts, length, reference=numpy.zeros((len(pairs), 2)))

        data_rank = parallel_state.get_data_parallel_rank()
        size = layout.micro_batch * parallel_state.get_data_parallel_world_size()
        # The interleaved schedule takes micro batches in groups of the pipeline's size.
        group = _MICRO_BATCHES * parallel_state.get_pipeline_model_parallel_world_size()
        for begin in range(0, len(rows), size * group):
            self._watchdog.alive(patient=begin == 0)
            firsts = [begin + (n * size) + data_rank * layout.micro_batch for n in range(group)]
            batches = [
                layout.build([sample(first + n) for n in range(layout.micro_batch)]) for first in firsts
            ]
            for first, values in zip(firsts, self._forward(batches), strict=False):
                pairs = [pair for row in rows[first : first + layout.micro_batch] for pair in row]
                found[torch.as_tensor(pairs, dtype=torch.int64, device=found.device)] = values.double()
        if not reports_loss() or parallel_state.get_context_parallel_rank() != 0:
            found.zero_()
        torch.distributed.all_reduce(found)
        whole: LogProbabilities = found.cpu().numpy()
        whole[lengths > length] = numpy.nan
        return whole

    def _forward(self, batches: list[Batch]) -> list[Tensor]:
        """Log-probabilities of the answers of each micro batch [P, 2]; nothing off the last pipeline stage."""
        data: Any = iterators(batches, len(self._models))
        with torch.no_grad():
            reports: list[Tensor] = self._schedule(
                forward_step_func=partial(forward_step, objective=_collect),
                data_iterator=data if len(data) > 1 else data[0],
                model=self._models if len(self._models) > 1 else self._models[0],
                num_microbatches=len(batches),
                seq_length=self._run.config.sequence_length,
                micro_batch_size=self._layout.micro_batch,
                forward_only=True,
            )
        return reports


def _collect(batch: Batch, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """In the form of an objective: nothing to minimise, number of pairs, log-probabilities."""
    found = answer_log_probabilities(batch, output[0])
    number = torch.tensor(len(pairs_of(batch).reference), dtype=torch.int, device=found.device)
    return found.sum(), number, found


def read_pairs(job: TrainJob, world: World, stop: StopRequest, peers: Peers) -> bool:
    """Read all pairs as one rank. Returns whether the job is finished (False: it was asked to stop)."""
    config = job.config
    watchdog = Watchdog(config.watchdog_seconds, config.startup_watchdog_seconds, lambda _: peers.hangs())
    peers.position = lambda: watchdog.signs
    try:
        return ReferencePass(job, world, watchdog).run(stop)
    finally:
        watchdog.close()
