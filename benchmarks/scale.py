"""A rank of a job of hundreds, without the job: seconds and memory of starting up, and a training step traced.

    python benchmarks/scale.py                                  # swallow-70b at 256, 512 and 1,024 ranks
    python benchmarks/scale.py --experiments all                # a step of every recipe at its own size
    python benchmarks/scale.py --ranks 1024 --rank 1023 --json
    python benchmarks/scale.py --documents 100_000_000          # sample indices of 104.9 billion tokens

Process groups are torch's `fake` backend, whose collectives do nothing, and tensors are `FakeTensor`s, which have a
shape and no content. So everything that is Python runs as it would on that rank: process groups, model, gradient
buffers, distributed optimizer, the pipeline schedule with its messages, backward pass and update. Nothing is
computed and nothing is sent. The paths are those of a GPU (bf16, fused loss, gradients added by the matrix product,
attention without repeated keys) except torch's compiler; the device is the CPU's, because the autograd engine of a
build without CUDA takes no other. An operation that needs a value on the host fails under FakeTensor: a step that
is traced reads none.

Each row is a process of its own. `state` are the bytes of weights, gradient buffer and optimizer that the rank
holds, beside what `tsugiki plan` says.

`--documents` makes the sample indices that rank 0 of a run makes before its first step, for so many documents of
log-normal lengths with a mean of 1,049 tokens and sequences of 4,096 (the size of Swallow's pretraining corpus at 100
million), and opens them again as every other rank does. The token file is sparse.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

HEADINGS = ("experiment", "ranks", "t x p x c x d", "groups s", "build s", "optimizer s", "step s", "passes",
            "state GB", "planned GB", "process GB")  # fmt: skip


def main() -> None:
    """Print a table, or JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--experiments", default="swallow-70b", help="names, comma-separated, or `all` recipes"
    )
    parser.add_argument(
        "--ranks", default="", help="sizes of the job; default 256,512,1024, or each recipe's own"
    )
    parser.add_argument("--rank", type=int, default=0, help="which rank; negative from the end")
    parser.add_argument(
        "--passes", type=int, default=0, help="micro batches at most; default: pipeline stages"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--documents", type=int, default=0, help="time Megatron's sample indices instead")
    arguments = parser.parse_args()
    if arguments.documents:
        print(json.dumps(index(arguments.documents)))
        return
    names = recipes() if arguments.experiments == "all" else arguments.experiments.split(",")
    sizes = [int(size) for size in arguments.ranks.split(",") if size]
    if not sizes:
        sizes = [0] if arguments.experiments == "all" else [256, 512, 1024]
    if arguments.one:
        print(json.dumps(simulate(names[0], sizes[0], arguments.rank, arguments.passes)))
        return
    if not arguments.json:
        print(" | ".join(HEADINGS))
    for name in names:
        for size in sizes:
            command = [sys.executable, __file__, "--one", "--experiments", name, "--ranks", str(size)]
            command += ["--rank", str(arguments.rank), "--passes", str(arguments.passes)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} at {size} ranks failed:\n{done.stderr[-4000:]}")
            line = done.stdout.splitlines()[-1]
            print(line if arguments.json else " | ".join(shown(json.loads(line))), flush=True)


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    from tsugiki.experiment.config.shipped import experiments

    return [name for name, path in experiments().items() if path.parent.name == "recipes"]


def shown(row: dict[str, Any]) -> list[str]:
    """A row as text, in the order of `HEADINGS`."""
    return [
        row["experiment"], str(row["ranks"]), " x ".join(map(str, row["layout"])),
        *(f"{row[f'{key}_seconds']:.1f}" for key in ("groups", "build", "optimizer", "step")), str(row["passes"]),
        *(f"{row[key] / 1e9:.2f}" for key in ("state_bytes", "planned_bytes", "process_bytes")),
    ]  # fmt: skip


def simulate(name: str, ranks: int, rank: int, passes: int = 0) -> dict[str, Any]:
    """Start a rank of an experiment and trace a step of it.

    Args:
        name: experiment.
        ranks: of the job; 0 takes the experiment's own.
        rank: negative counts from the end.
        passes: micro batches at most; 0 takes the pipeline stages.

    Returns:
        Seconds and bytes; see the module.
    """
    import torch
    from torch.utils._device import _device_constructors

    _device_constructors()  # before the CPU shim replaces the factories
    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

    import_megatron()
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tsugiki.pipeline import load_experiment
    from tsugiki.pretrain.model.backend import Acceleration
    from tsugiki.pretrain.model.context_extension import extended_context
    from tsugiki.pretrain.model.gpt import build_model
    from tsugiki.pretrain.planning.memory import stage_memory
    from tsugiki.pretrain.planning.plan import base_spec, extended_rows
    from tsugiki.pretrain.training.optimizer import Optimizer, wrap_models

    values = {"train.precision": "bf16"}
    config = load_experiment(name, values=values, any_layout=True).config
    base, _ = base_spec(config.base)
    rows, _ = extended_rows(base.vocabulary_size, config.tokenizer.extend)
    spec = extended_context(base.model_copy(update={"vocabulary_size": rows}), config.graft)
    train, parallel = config.train, config.train.parallel
    ranks = ranks or parallel.model_processes * (parallel.data or 1)
    data = ranks // parallel.model_processes
    rank %= ranks
    clock = Clock()
    with fake_world(rank, ranks, parallel), FakeTensorMode(allow_non_fake_inputs=True):
        clock.lap("groups")
        fast = Acceleration(fused_loss=True, accumulate=True, attention="fast")
        models = build_model(
            spec,
            parallel,
            precision="bf16",
            recompute=train.recompute,
            recompute_layers=train.recompute_layers,
            z_loss=train.z_loss,
            acceleration=fast,
        )
        wrapped = wrap_models(models, distributed_optimizer=train.optimizer.distributed)
        clock.lap("build")
        optimizer = Optimizer(train.optimizer, wrapped, "bf16")
        clock.lap("optimizer")
        state = held_bytes()
        per_rank = max(1, train.global_batch // (train.micro_batch * data))
        passes = min(per_rank, passes or parallel.pipeline * (parallel.virtual_pipeline or 1))
        step(train, models, wrapped, optimizer, passes)
        clock.lap("step")
        stage = place(parallel)
    planned = stage_memory(spec, train, data, stage)
    return {
        "experiment": name, "ranks": ranks, "rank": rank, "stage": stage, "passes": passes,
        "layout": [parallel.tensor, parallel.pipeline, parallel.context, data],
        **{f"{part}_seconds": round(seconds, 3) for part, seconds in clock.laps.items()},
        "state_bytes": state, "planned_bytes": planned.weights + planned.gradients + planned.optimizer,
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "torch": torch.__version__,
    }  # fmt: skip


def step(train: Any, models: list[Any], wrapped: list[Any], optimizer: Any, passes: int) -> None:
    """Forward and backward passes of `passes` micro batches through the schedule, and the update."""
    import torch
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from tsugiki.pretrain.runtime.process_groups import finalize_gradients
    from tsugiki.pretrain.training.samples.batches import Batch
    from tsugiki.pretrain.training.samples.reader import iterators
    from tsugiki.pretrain.training.step import forward_step

    for model in models:
        model.config.finalize_model_grads_func = finalize_gradients
        model.config.grad_scale_func = optimizer.megatron.scale_loss
        model.config.no_sync_func = (
            [item.no_sync for item in wrapped] if len(wrapped) > 1 else wrapped[0].no_sync
        )
    shape = (train.micro_batch, train.sequence_length // train.parallel.context)
    ids = torch.zeros(shape, dtype=torch.int64)
    batches = [Batch(ids, ids, torch.ones(shape)) for _ in range(passes)]
    optimizer.zero_grad(wrapped)
    data = iterators(batches, len(wrapped))
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=data if len(data) > 1 else data[0],
        model=wrapped if len(wrapped) > 1 else wrapped[0],
        num_microbatches=passes,
        seq_length=train.sequence_length,
        micro_batch_size=train.micro_batch,
        forward_only=False,
    )
    optimizer.megatron.prepare_grads()
    optimizer.megatron.step_with_ready_grads()


def index(documents: int, mean: int = 1049, sequence_length: int = 4096) -> dict[str, Any]:
    """Make and open the sample indices of one source, read once.

    Args:
        documents: of the source.
        mean: tokens of a document.
        sequence_length: tokens of a sample.

    Returns:
        Seconds, bytes on disk, and the peak of this process's memory.
    """
    import tempfile

    import numpy as np

    from tsugiki.experiment.artefacts.indexed_dataset import token_type, write_index
    from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource
    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

    import_megatron()
    from tsugiki.pretrain.training.samples.batches import TrainingData

    lengths = np.random.default_rng(0).lognormal(np.log(mean) - 0.5, 1.0, documents).astype(np.int32) + 1
    tokens = int(lengths.sum(dtype=np.int64))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dtype = token_type(43_176)
        write_index(folder / "a.idx", lengths, dtype)
        del lengths
        with (folder / "a.bin").open("wb") as file:
            file.truncate(tokens * dtype.itemsize)
        source = MixtureSource(
            name="a", language="ja", prefix="a", heldout_prefix=None, documents=documents, tokens=tokens, bytes=0,
            heldout_documents=0, heldout_tokens=0, heldout_bytes=0, share=1.0, planned_tokens=tokens, epochs=1.0,
        )  # fmt: skip
        mixture = Mixture(vocabulary_size=43_176, bos_id=1, eod_id=2, total_tokens=tokens, sources=[source])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        clock = Clock()
        for lap in ("make", "open"):
            data = TrainingData(
                mixture, folder, folder / "cache", sequence_length=sequence_length,
                samples=tokens // sequence_length, seed=1,
            )  # fmt: skip
            clock.lap(lap)
        data.sample(tokens // sequence_length - 1)
        cache = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    return {
        "documents": documents, "tokens": tokens, "samples": tokens // sequence_length,
        **{f"{part}_seconds": round(seconds, 2) for part, seconds in clock.laps.items()}, "cache_bytes": cache,
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "before_bytes": before,
    }  # fmt: skip


class Clock:
    """Seconds between calls, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Everything since the last call was this."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def place(parallel: Any) -> int:
    """This rank's pipeline stage."""
    from megatron.core import parallel_state

    return parallel_state.get_pipeline_model_parallel_rank() if parallel.pipeline > 1 else 0


def held_bytes() -> int:
    """Bytes of all fake tensors that exist, each storage once."""
    import gc

    from torch._subclasses.fake_tensor import FakeTensor

    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), FakeTensor):
            storage = item.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


class _Done:
    """A collective that is over."""

    def wait(self) -> None:
        """Nothing to wait for."""


@contextlib.contextmanager
def fake_world(rank: int, ranks: int, parallel: Any) -> Iterator[None]:
    """This process as one rank of a job whose other ranks do not exist."""
    import megatron.core.distributed.param_and_grad_buffer as buffers
    import megatron.core.tensor_parallel.random as generators
    import torch
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tsugiki.pretrain.runtime.process_groups import divide

    def of_all(found: list[Any], own: Any, group: Any = None) -> None:
        found[:] = [own] * len(found)

    @contextlib.contextmanager
    def coalesced(*_: Any, **__: Any) -> Iterator[_Done]:
        yield _Done()

    torch.distributed.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    divide(parallel)
    # What FakeTensor has no rule for: objects sent as bytes, coalesced collectives, the generators' states.
    torch.distributed.all_gather_object = of_all
    buffers._coalescing_manager = coalesced
    buffers.dist_reduce_scatter_func = buffers.dist_all_gather_func = lambda *_, **__: _Done()
    generators.CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()
    generators.model_parallel_cuda_manual_seed(1)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
