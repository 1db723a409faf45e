"""Our side of train_gpu.py: the training step of `pretrain/` on random tokens."""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def acceleration_of(side: str, device: str) -> Any:
    """What a side uses; on a CPU the fast paths without the compiler."""
    from tsugiki.pretrain.model.backend import REFERENCE, Acceleration, resolve

    if side == "ours-plain":
        return REFERENCE
    if device == "cpu":
        return Acceleration(fused_loss=True, accumulate=True, attention="fast")
    backend: Any = {"ours-apex": "apex", "ours-te": "transformer_engine", "ours-te-fp8": "transformer_engine"}
    return resolve(
        backend.get(side, "torch"),
        precision="fp8" if side.endswith("fp8") else "bf16",
        gpu=True,
        compile=side != "ours-eager",
    )


class Bench:
    """A model, its optimizer, and steps on random tokens.

    Args:
        spec: the model.
        sequence: tokens of a sequence.
        options: micro_batch, micro_batches, device.
        side: which fast paths.
    """

    def __init__(self, spec: Any, sequence: int, options: argparse.Namespace, side: str) -> None:
        from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

        import_megatron()
        import torch
        from megatron.core.pipeline_parallel import get_forward_backward_func
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from tsugiki.pretrain.config import OptimizerConfig, ParallelConfig
        from tsugiki.pretrain.model.gpt import build_model
        from tsugiki.pretrain.runtime.process_groups import finalize_gradients, initialise
        from tsugiki.pretrain.runtime.world import World
        from tsugiki.pretrain.training.optimizer import Optimizer, wrap_models
        from tsugiki.pretrain.training.samples.batches import Batch

        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        initialise(World(0, 1, 0), ParallelConfig(), 1, TCPStore("127.0.0.1", port, 1, is_master=True))
        self.precision = "bf16" if options.device == "cuda" else "fp32"
        self.spec, self.options = spec, options
        self.models = build_model(
            spec,
            ParallelConfig(),
            precision=self.precision,
            acceleration=acceleration_of(side, options.device),
        )
        self.wrapped = wrap_models(self.models, distributed_optimizer=True)
        self.optimizer = Optimizer(OptimizerConfig(), self.wrapped, self.precision)
        config = self.models[0].config
        config.finalize_model_grads_func = finalize_gradients
        config.grad_scale_func = self.optimizer.megatron.scale_loss
        config.no_sync_func = self.wrapped[0].no_sync
        self.forward_backward = get_forward_backward_func()
        device, size = torch.cuda.current_device(), (options.micro_batch, sequence)
        generator = torch.Generator().manual_seed(0)
        self.batches = []
        for _ in range(options.micro_batches):
            rows = torch.randint(0, spec.vocabulary_size, (size[0], sequence + 1), generator=generator)
            self.batches.append(
                Batch(rows[:, :-1].to(device), rows[:, 1:].to(device), torch.ones(size, device=device))
            )
        self.sequence = sequence

    def step(self) -> float:
        """One optimizer step as in the training loop; returns its seconds."""
        from train_gpu import synchronize

        from tsugiki.pretrain.training.step import forward_step

        synchronize(self.options.device)
        start = time.perf_counter()
        self.optimizer.zero_grad(self.wrapped)
        self.forward_backward(
            forward_step_func=forward_step,
            data_iterator=iter(self.batches),
            model=self.wrapped[0],
            num_microbatches=len(self.batches),
            seq_length=self.sequence,
            micro_batch_size=self.options.micro_batch,
            forward_only=False,
        )
        self.optimizer.step(1e-5, float(self.optimizer.squared_norm()) ** 0.5)
        synchronize(self.options.device)
        return time.perf_counter() - start


def train(spec: Any, sequence: int, options: argparse.Namespace) -> list[float]:
    """Seconds of every step."""
    bench = Bench(spec, sequence, options, options.side)
    seconds = [bench.step() for _ in range(options.steps)]
    if options.profile:
        with _profiled(options.profile):
            bench.step()
    return seconds


@contextlib.contextmanager
def _profiled(path: Path) -> Iterator[None]:
    """Write what takes the time of one step."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    import torch

    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as trace:
        yield
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(trace.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=90))


def checkpoint_blocking(spec: Any, sequence: int, options: argparse.Namespace) -> dict[str, Any]:
    """How long an asynchronous checkpoint keeps the loop from training, against the time of a step."""
    from tsugiki.pretrain.checkpoint.state import TrainingState
    from tsugiki.pretrain.checkpoint.store import CheckpointStore

    sys.stdout.flush()
    bench = Bench(spec, sequence, options, "ours")
    step = statistics.median([bench.step() for _ in range(4)][1:])
    state = TrainingState(bench.models, bench.optimizer.megatron, spec.vocabulary_size)
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), 1, None, asynchronous=True)
        saves = []
        for number in (1, 2):  # the first one also allocates the copy
            store.save(number, state, {}, {})
            beside = []
            while store.writing:
                beside.append(bench.step())
            saved = store.finish()
            assert saved is not None
            saves.append(
                {
                    "blocking_seconds": saved.blocking_seconds,
                    "seconds": saved.seconds,
                    "step_seconds_meanwhile": beside,
                }
            )
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"step_seconds": step, "bytes": size, "saves": saves}
