"""Reads batches ahead of the steps that need them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from megatron.core import parallel_state

from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.training.samples.batches import Batch, BatchLayout, TrainingData


class BatchReader:
    """Reads the batches of steps ahead of time in a thread; its copies to the GPU have their own stream.

    Attributes:
        waited_seconds: time the training loop has waited for data, in all.
    """

    def __init__(self, data: TrainingData, layout: BatchLayout, steps: int) -> None:
        self._data = data
        self._layout = layout
        self._steps = steps
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        # A thread starts on GPU 0 whatever the rank: entering the stream chooses this rank's.
        self._stream: Any = torch.cuda.Stream()
        self._ahead: dict[int, Future[tuple[list[Batch], Any]]] = {}
        self.waited_seconds = 0.0

    def step(self, step: int) -> list[Batch]:
        """The micro batches of this rank in a step, counted from 0."""
        future = self._ahead.pop(step, None)
        for stale in self._ahead.values():
            stale.cancel()
        self._ahead.clear()
        if future is None:
            future = self._reader.submit(self._read, step)
        start = time.monotonic()
        batches, copied = future.result()
        self.waited_seconds += time.monotonic() - start
        current: Any = torch.cuda.current_stream()
        current.wait_event(copied)
        for batch in batches if has_gpu() else ():
            batch.record_stream(current)
        if step + 1 < self._steps:
            self._ahead[step + 1] = self._reader.submit(self._read, step + 1)
        return batches

    def close(self) -> None:
        """Stop the thread."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> tuple[list[Batch], Any]:
        """The batches, and the event of their arrival on the GPU."""
        with torch.cuda.stream(self._stream):
            return self._batches(step), self._stream.record_event()

    def _batches(self, step: int) -> list[Batch]:
        layout = self._layout
        data_rank = parallel_state.get_data_parallel_rank()
        data_parallel_size = parallel_state.get_data_parallel_world_size()
        batches = []
        for micro in range(layout.micro_batches):
            number = micro * data_parallel_size + data_rank
            first = step * layout.global_batch + number * layout.micro_batch
            samples = [self._data.sample(first + offset) for offset in range(layout.micro_batch)]
            batches.append(layout.build(samples))
        return batches


def iterators(batches: list[Batch], chunks: int) -> list[Iterator[Batch]]:
    """One iterator over the same batches for every chunk of the model."""
    return [iter(batches) for _ in range(chunks)]
