"""One rank that compares a fast model with the plain one: same weights, same batch, loss and gradients.

    python parity.py JSON RANK SIZE PORT

JSON: family, parallel, precision, acceleration (fields of Acceleration), boundaries, overrides of the
model's shape. Rank 0 prints {"loss": relative difference, "gradients": {name: relative difference}}.
The weights travel through a checkpoint, which the plain model writes and the fast one reads. It runs on
the GPU where there is one, else on the CPU: the bodies of the GPU tests run without one.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHAPE: dict[str, Any] = {
    "layers": 2, "hidden_size": 64, "ffn_size": 96, "heads": 4, "kv_heads": 2, "head_dim": 16,
    "vocabulary_size": 101, "max_positions": 512,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "mistral": {"family": "mistral", "sliding_window": 20},
    "gemma": {
        "family": "gemma", "norm_offset": 1.0, "activation": "gelu_tanh", "tied_embeddings": True,
        "embedding_scale": 8.0,
    },
    "biases": {"family": "llama", "qkv_bias": True, "output_bias": True},
}  # fmt: skip
SEQUENCE, MICRO_BATCH = 64, 2  # unless the case names another `sequence`


def compare(processes: int, *, gpu: bool = False, **case: Any) -> dict[str, Any]:
    """Run the ranks of a case; returns what rank 0 printed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, json.dumps({**case, "folder": folder})]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(processes), str(port)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(processes)
        ]  # fmt: skip
        outputs = [rank.communicate(timeout=300) for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors[-4000:]
    result: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return result


def main() -> None:
    """One rank."""
    case = json.loads(sys.argv[1])
    rank, size, port = (int(text) for text in sys.argv[2:])
    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

    import_megatron()
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from tsugiki.experiment.model.model_spec import ModelSpec
    from tsugiki.pretrain.config import ParallelConfig
    from tsugiki.pretrain.model.backend import REFERENCE, Acceleration
    from tsugiki.pretrain.runtime.process_groups import initialise
    from tsugiki.pretrain.runtime.world import World

    parallel = ParallelConfig.model_validate(case.get("parallel", {}))
    spec = ModelSpec.model_validate({**SHAPE, **FAMILIES[case["family"]], **case.get("overrides", {})})
    store = TCPStore("127.0.0.1", port, size, is_master=rank == 0)
    initialise(World(rank, size, rank), parallel, 7, store)
    checkpoint = Path(case["folder"]) / "checkpoint"
    if rank == 0:
        checkpoint.mkdir()
    torch.distributed.barrier()
    precision = case.get("precision", "fp32")
    plain = run(spec, parallel, precision, REFERENCE, checkpoint, case, write=True)
    fast = run(spec, parallel, precision, Acceleration(**case["acceleration"]), checkpoint, case, write=False)
    assert plain[1].keys() == fast[1].keys()
    values = [difference(fast[0], plain[0]), *(difference(fast[1][key], plain[1][key]) for key in plain[1])]
    worst = torch.tensor(values, device=torch.cuda.current_device())
    torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
    loss, *gradients = worst.tolist()
    if rank == 0:
        print(json.dumps({"loss": loss, "gradients": dict(zip(plain[1], gradients, strict=True))}))
    torch.distributed.destroy_process_group()


def difference(ours: Any, theirs: Any) -> float:
    """Norm of the difference over that of the reference."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def run(
    spec: Any, parallel: Any, precision: str, acceleration: Any, checkpoint: Path, case: Any, *, write: bool
) -> tuple[Any, dict[str, Any]]:
    """Losses [b, s] and the gradient of every parameter in Megatron's buffers, after two micro batches."""
    import torch
    from megatron.core import parallel_state

    from tsugiki.pretrain.checkpoint.state import TrainingState
    from tsugiki.pretrain.model.gpt import build_model
    from tsugiki.pretrain.training.optimizer import wrap_models
    from tsugiki.pretrain.training.samples.batches import _context_chunks

    models = build_model(
        spec, parallel, precision=precision, recompute=case.get("recompute", "none"), z_loss=1e-3,
        acceleration=acceleration,
    )  # fmt: skip
    state = TrainingState(models, None, spec.vocabulary_size)
    if write:
        state.save(checkpoint, {})()
    else:
        state.load(checkpoint, weights_only=True)
    (model,) = wrap_models(models, distributed_optimizer=False)
    model.zero_grad_buffer()
    generator = torch.Generator().manual_seed(case.get("seed", 3))
    device = torch.cuda.current_device()
    entropies, sequence = [], case.get("sequence", SEQUENCE)
    for _ in range(2):
        tokens = torch.randint(0, spec.vocabulary_size, (MICRO_BATCH, sequence + 1), generator=generator)
        boundaries = None
        if case.get("boundaries"):
            documents = (torch.arange(sequence) // 23).expand(MICRO_BATCH, sequence)
            boundaries = torch.stack([documents, torch.arange(sequence) - documents * 23]).to(device)
        local, labels = (_context_chunks(part).to(device) for part in (tokens[:, :-1], tokens[:, 1:]))
        objective, entropy = model(
            input_ids=local, position_ids=None, attention_mask=boundaries, labels=labels
        )
        objective.sum().backward()
        entropies.append(entropy.detach())
    model.finish_grad_sync()
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state_dict = models[0].sharded_state_dict(metadata={"dp_cp_group": group})
    gradients = {}
    for name, parameter in models[0].named_parameters():
        # The name in checkpoints is the same in all backends; it lacks the number of the layer.
        layer = re.search(r"layers\.(\d+)\.", name)
        gradients[state_dict[name].key + (f" of layer {layer[1]}" if layer else "")] = parameter.main_grad
    return torch.cat(entropies), gradients


if __name__ == "__main__":
    main()
