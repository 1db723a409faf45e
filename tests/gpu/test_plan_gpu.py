"""The memory plan against what a GPU's allocator has given out at the fullest moment of a training step."""

import json
import os
import subprocess
import sys

import pytest
from training_case import ROOT

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.planning.memory import stage_memory

# About half state (18 bytes for each of 0.25 billion parameters), half activations; 10 GB together.
LLAMA = {
    "family": "llama", "layers": 4, "hidden_size": 2048, "ffn_size": 5632, "heads": 16, "kv_heads": 4,
    "head_dim": 128, "vocabulary_size": 16_000, "max_positions": 2048,
}  # fmt: skip
MISTRAL = {**LLAMA, "family": "mistral", "sliding_window": 512}
GEMMA = {
    **LLAMA, "family": "gemma", "heads": 16, "kv_heads": 16, "head_dim": 256, "norm_offset": 1.0,
    "activation": "gelu_tanh", "tied_embeddings": True, "embedding_scale": 45.25,
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("model", [LLAMA, MISTRAL, GEMMA], ids=lambda model: model["family"])
def test_peak_of_a_step_on_a_gpu(model: dict[str, object], recompute: str) -> None:
    """Weights, gradients, optimizer, activations, logits and workspace together: within 10 %."""
    case = {
        "model": model, "recompute": recompute, "precision": "bf16", "sequence": 2048, "micro_batch": 8,
        "micro_batches": 2, "fast": True,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "tests/support/memory_ranks.py", "gpu", json.dumps(case)],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    train = TrainConfig(
        precision="bf16", recompute=recompute, sequence_length=2048, micro_batch=8, global_batch=16
    )
    planned = stage_memory(ModelSpec.model_validate(model), train, 1, 0).total
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(planned, rel=0.1)
