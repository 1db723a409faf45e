"""Memory of real training steps on a CPU, one process for every rank of a layout: prints one JSON list.

    python tests/support/memory_ranks.py '[{"parallel": {...}, "alone": false, "cases": [{...}, ...]}, ...]'

The ranks of a layout exchange data over gloo, or each is `alone`, with nobody to talk to. A case: model (fields of ModelSpec), precision, recompute, sequence, micro_batch, micro_batches, fast (the
paths that a GPU takes, as far as a CPU has them). The answer holds for every case the measures of every rank.
Megatron is imported once, the ranks of a layout are forked. A step is the training loop's: its model,
gradient buffers, optimizer, forward step and Megatron's schedule. `gpu CASE` measures one case on a GPU.
"""

import gc
import json
import os
import signal
import sys
import tempfile
import traceback
import weakref
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

    import_megatron()
    import torch

    import tsugiki.pretrain.training.trainer  # noqa: F401

    if sys.argv[1] == "gpu":
        print(json.dumps(peak_on_gpu(json.loads(sys.argv[2]))))
        return
    torch.set_num_threads(1)
    gc.freeze()
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        for number, layout in enumerate(json.loads(sys.argv[1])):
            parallel = layout["parallel"]
            size = parallel.get("tensor", 1) * parallel.get("pipeline", 1) * parallel.get("context", 1)
            paths = [Path(folder) / f"{number}-{rank}.json" for rank in range(size)]
            wait(
                [
                    fork(layout, rank, size, Path(folder) / f"store{number}", paths[rank])
                    for rank in range(size)
                ]
            )
            ranks = [json.loads(path.read_text()) for path in paths]
            answers.append([list(measures) for measures in zip(*ranks, strict=True)])
    print(json.dumps(answers))


def wait(ranks: list[int]) -> None:
    """Until all are done; where one fails the others, which would wait for it, end, too."""
    running = set(ranks)
    while running:
        child, status = os.wait()
        running.discard(child)
        if status:
            for other in running:
                os.kill(other, signal.SIGKILL)
            sys.exit("a rank failed")


def fork(layout: dict[str, Any], rank: int, size: int, store: Path, answer: Path) -> int:
    """Start a rank that measures all cases of a layout; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        answer.write_text(json.dumps(measure_layout(layout, rank, size, store)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def measure_layout(layout: dict[str, Any], rank: int, size: int, store: Path) -> list[dict[str, int]]:
    """All cases of a layout on one rank."""
    import torch

    from tsugiki.pretrain.config import ParallelConfig
    from tsugiki.pretrain.runtime.process_groups import initialise
    from tsugiki.pretrain.runtime.world import World

    parallel = ParallelConfig.model_validate(layout["parallel"])
    if layout["alone"]:
        join_nobody(parallel, rank, size)
        return [peak(case, parallel) for case in layout["cases"]]
    initialise(World(rank, size, rank), parallel, 1, torch.distributed.FileStore(str(store), size))
    return [held(case, parallel) for case in layout["cases"]]


def join_nobody(parallel: Any, rank: int, size: int) -> None:
    """Take a rank's place in a process group whose collectives do nothing.

    gloo makes copies of what it sends, which NCCL does not, and frees them in threads of its own.
    """
    import torch
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tsugiki.pretrain.runtime.process_groups import divide

    torch.distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    divide(parallel)
    model_parallel_cuda_manual_seed(1)


def build(case: dict[str, Any], parallel: Any) -> tuple[list[Any], Any]:
    """Wrapped model chunks and optimizer of a case."""
    import tsugiki.pretrain.model.fused_loss
    import tsugiki.pretrain.model.layers
    from tsugiki.experiment.model.model_spec import ModelSpec
    from tsugiki.pretrain.config import OptimizerConfig
    from tsugiki.pretrain.model.backend import REFERENCE, Acceleration, resolve
    from tsugiki.pretrain.model.gpt import build_model
    from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
    from tsugiki.pretrain.runtime.process_groups import finalize_gradients
    from tsugiki.pretrain.training.optimizer import Optimizer, wrap_models

    acceleration = REFERENCE
    if has_gpu():
        acceleration = resolve("torch", precision=case["precision"], gpu=True)
    elif case["fast"]:
        # What is fused by hand, without the compiler.
        tsugiki.pretrain.model.layers.compiled = tsugiki.pretrain.model.fused_loss.compiled = (
            lambda function: function
        )
        acceleration = Acceleration(compile=True, fused_loss=True, accumulate=True)
    models = build_model(
        ModelSpec.model_validate(case["model"]),
        parallel,
        precision=case["precision"],
        recompute=case["recompute"],
        acceleration=acceleration,
    )
    wrapped = wrap_models(models, distributed_optimizer=True)
    optimizer = Optimizer(OptimizerConfig(), wrapped, case["precision"])
    for model in models:
        model.config.finalize_model_grads_func = finalize_gradients
        model.config.grad_scale_func = optimizer.megatron.scale_loss
        model.config.no_sync_func = (
            [item.no_sync for item in wrapped] if len(wrapped) > 1 else wrapped[0].no_sync
        )
    return wrapped, optimizer


def held(case: dict[str, Any], parallel: Any) -> dict[str, int]:
    """State of a rank, and what it keeps for the backward pass."""
    import torch
    from megatron.core import parallel_state

    before = live_storages()
    wrapped, optimizer = build(case, parallel)
    state = sum(storage.nbytes() for address, storage in live_storages().items() if address not in before)
    del before
    kept = Kept(parameter for model in wrapped for parameter in model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        run_schedule(case, wrapped, kept.after_forward)
    del optimizer
    return {"stage": parallel_state.get_pipeline_model_parallel_rank(), "state": state, "kept": kept.peak}


def peak(case: dict[str, Any], parallel: Any) -> dict[str, int]:
    """The most that a whole step, optimizer included, allocates beside the state."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.layers import get_global_memory_buffer

    wrapped, optimizer = build(case, parallel)
    get_global_memory_buffer().buffer.clear()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        optimizer.zero_grad(wrapped)
        run_schedule(case, wrapped, lambda output: None)
        optimizer.step(1e-3, float(optimizer.squared_norm()) ** 0.5)
    return {"stage": parallel_state.get_pipeline_model_parallel_rank(), "peak": peak_bytes(profiler)}


def peak_on_gpu(case: dict[str, Any]) -> int:
    """`torch.cuda.max_memory_allocated` of a step, state included, once kernels are compiled."""
    import torch

    from tsugiki.pretrain.config import ParallelConfig
    from tsugiki.pretrain.runtime.process_groups import initialise
    from tsugiki.pretrain.runtime.world import World

    initialise(World(0, 1, 0), ParallelConfig(), 1, torch.distributed.HashStore())
    wrapped, optimizer = build(case, ParallelConfig())
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(wrapped)
        run_schedule(case, wrapped, lambda output: None)
        optimizer.step(1e-3, float(optimizer.squared_norm()) ** 0.5)
    return torch.cuda.max_memory_allocated()


def run_schedule(case: dict[str, Any], wrapped: list[Any], after_forward: Any) -> None:
    """Forward and backward passes of a step; `after_forward` is called when a micro batch is through a chunk."""
    import torch
    from megatron.core.parallel_state import get_context_parallel_world_size
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from tsugiki.pretrain.training import step as training_step
    from tsugiki.pretrain.training.samples.batches import Batch
    from tsugiki.pretrain.training.samples.reader import iterators

    def forward_step(data: Any, model: Any) -> Any:
        result = training_step.forward_step(data, model)
        after_forward(result[0])
        return result

    shape = (case["micro_batch"], case["sequence"] // get_context_parallel_world_size())
    batches = []
    for _ in range(case["micro_batches"]):
        tokens = torch.randint(0, case["model"]["vocabulary_size"], shape, device=torch.cuda.current_device())
        batches.append(Batch(tokens, tokens.roll(-1, dims=1), torch.ones(shape, device=tokens.device)))
    data = iterators(batches, len(wrapped))
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=data if len(data) > 1 else data[0],
        model=wrapped if len(wrapped) > 1 else wrapped[0],
        num_microbatches=len(batches),
        seq_length=case["sequence"],
        micro_batch_size=case["micro_batch"],
        forward_only=False,
    )


class Kept:
    """What autograd and the schedule hold when a backward pass begins, parameters left out, at its largest.

    Args:
        parameters: of the model.
    """

    def __init__(self, parameters: Any) -> None:
        self.known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.users: dict[int, int] = {}
        self.outputs: list[Any] = []
        self.forward_is_over = False
        self.bytes = self.peak = 0

    def pack(self, tensor: Any) -> Any:
        """Count a storage that autograd keeps, once, until it is released."""
        return _Held(self, tensor)

    def after_forward(self, output: Any) -> None:
        """A micro batch is through a chunk; its output, where it is sent on, the schedule keeps."""
        self.forward_is_over = True
        if not isinstance(output, tuple):
            self.outputs.append(weakref.ref(output))

    def unpack(self, item: Any) -> Any:
        """Called first by the first backward pass after a forward pass, later for what is recomputed, too."""
        if self.forward_is_over:
            self.forward_is_over = False
            sent = [output() for output in self.outputs]
            outputs = sum(output.untyped_storage().nbytes() for output in sent if output is not None)
            self.peak = max(self.peak, self.bytes + outputs)
        return item.tensor


class _Held:
    def __init__(self, saved: Kept, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self.saved, self.address = tensor, saved, storage.data_ptr()
        self.size = 0 if self.address in saved.known else storage.nbytes()
        if not saved.users.get(self.address):
            saved.bytes += self.size
        saved.users[self.address] = saved.users.get(self.address, 0) + 1

    def __del__(self) -> None:
        self.saved.users[self.address] -= 1
        if not self.saved.users[self.address]:
            self.saved.bytes -= self.size


def peak_bytes(profiler: Any) -> int:
    """Most bytes that torch's allocator had given out at once, of those given out while profiling."""
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        alive += change
        peak = max(peak, alive)
    return peak


def live_storages() -> dict[int, Any]:
    """Storages of all tensors that exist, by address; whoever holds them keeps the addresses from use by others."""
    import torch

    gc.collect()
    storages = [
        item.untyped_storage()
        for item in gc.get_objects()
        if type(item) in (torch.Tensor, torch.nn.Parameter) and not item.is_meta
    ]
    return {storage.data_ptr(): storage for storage in storages}


if __name__ == "__main__":
    main()
