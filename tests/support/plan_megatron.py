"""Measurements on the real Megatron model, in a process of their own: prints one JSON object.

python tests/support/plan_megatron.py activations     # bytes that autograd keeps, per configuration
python tests/support/plan_megatron.py ranks CONFIG    # parameters of every rank of a recipe
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.utils._device import _device_constructors

_device_constructors()  # torch.device("meta") must know the factories from before the CPU shim replaces them

from tsugiki.pretrain.runtime import megatron_cpu  # noqa: E402

megatron_cpu.install()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402

from tsugiki.experiment.model.model_spec import ModelSpec  # noqa: E402
from tsugiki.pretrain.config import ParallelConfig  # noqa: E402
from tsugiki.pretrain.model.gpt import build_model, padded_vocabulary  # noqa: E402
from tsugiki.pretrain.runtime.process_groups import divide  # noqa: E402

SEQUENCE, MICRO_BATCH = 64, 2


def tiny(kv_heads: int, layers: int, vocabulary: int) -> ModelSpec:
    return ModelSpec(
        family="llama",
        layers=layers,
        hidden_size=64,
        ffn_size=96,
        heads=4,
        kv_heads=kv_heads,
        head_dim=16,
        vocabulary_size=vocabulary,
        max_positions=128,
    )


def saved_bytes(spec: ModelSpec, precision: str, recompute: str, layers: int | None) -> int:
    """Storages that the graph of one forward pass holds, parameters left out."""
    model = build_model(
        spec, ParallelConfig(), precision=precision, recompute=recompute, recompute_layers=layers
    )[0]
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, spec.vocabulary_size, (MICRO_BATCH, SEQUENCE))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(tokens, None, None, labels=tokens)
    total = sum(storage.nbytes() for storage in held.values())
    del loss
    return total


def activations() -> list[dict[str, Any]]:
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    found = []
    ways = (("none", None), ("selective", None), ("full", None), ("full", 1))
    for precision, (recompute, some), kv_heads, layers, vocabulary in itertools.product(
        ("fp32", "bf16"), ways, (4, 2), (2, 5), (128, 1024)
    ):
        spec = tiny(kv_heads, layers, vocabulary)
        found.append(
            {
                "precision": precision,
                "recompute": recompute,
                "recompute_layers": some,
                "kv_heads": kv_heads,
                "layers": layers,
                "vocabulary": vocabulary,
                "bytes": saved_bytes(spec, precision, recompute, some),
            }
        )
    return found


def live_bytes() -> int:
    """Storages of all tensors that exist."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and not item.is_meta:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def state_of(case: tuple[int, bool, str]) -> dict[str, Any]:
    """What a process holds before its first step; the other processes of its layout do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tsugiki.pretrain.config import OptimizerConfig
    from tsugiki.pretrain.training.optimizer import Optimizer, wrap_models

    data, distributed, precision = case
    torch.distributed.init_process_group("fake", rank=0, world_size=data, store=FakeStore())
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    before = live_bytes()
    models = build_model(tiny(4, 2, 1024), ParallelConfig(), precision=precision)
    wrapped = wrap_models(models, distributed_optimizer=distributed)
    optimizer = Optimizer(OptimizerConfig(distributed=distributed), wrapped, precision)
    held = live_bytes() - before
    del optimizer
    return {"data": data, "distributed": distributed, "precision": precision, "bytes": held}


def state() -> list[dict[str, Any]]:
    import megatron.core.optimizer  # noqa: F401  once, before the processes fork

    cases = itertools.product((1, 4), (True, False), ("fp32", "bf16"))
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(state_of, cases, chunksize=1)


def ranks(config_path: str) -> dict[str, Any]:
    """Build the part of every rank of a recipe's layout with a process group that does not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tsugiki.pipeline import load_experiment
    from tsugiki.pretrain.planning.plan import base_spec, extended_rows

    config = load_experiment(Path(config_path)).config
    base, _ = base_spec(config.base)
    rows, _ = extended_rows(base.vocabulary_size, config.tokenizer.extend)
    spec = base.model_copy(update={"vocabulary_size": rows})
    parallel = config.train.parallel
    world = parallel.model_processes * (parallel.data or 1)
    found = []
    for rank in range(world):
        torch.distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        divide(parallel)
        if rank == 0:
            model_parallel_cuda_manual_seed(1)
        with torch.device("meta"):
            chunks = build_model(spec, parallel, precision=config.train.precision)
        parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
        assert all(parameter.device.type == "meta" for parameter in parameters)
        sharded = [item for item in parameters if getattr(item, "tensor_model_parallel", False)]
        found.append(
            {
                "stage": parallel_state.get_pipeline_model_parallel_rank(),
                "tensor": parallel_state.get_tensor_model_parallel_rank(),
                "data": parallel_state.get_data_parallel_rank(),
                "parameters": sum(item.numel() for item in parameters),
                "sharded": sum(item.numel() for item in sharded),
            }
        )
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    padded = spec.model_copy(update={"vocabulary_size": padded_vocabulary(rows, parallel.tensor)})
    return {"ranks": found, "padded_parameters": padded.parameters}


if __name__ == "__main__":
    measures = {"activations": activations, "state": state, "ranks": ranks}
    print(json.dumps(measures[sys.argv[1]](*sys.argv[2:])))
