"""Tiny random models of every family, saved by transformers, for the conversion tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short, so that the few positions of a test reach all three frequency ranges.
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Case:
    """A model to convert: architecture, changes to :data:`SMALL`, and how it is saved."""

    name: str
    architecture: str
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    shard_bytes: int | None = None


CASES = [
    Case("llama", "Llama"),
    Case("llama-mha-bf16", "Llama", {"num_key_value_heads": 4}, dtype="bfloat16"),
    Case("llama-mqa-fp16", "Llama", {"num_key_value_heads": 1}, dtype="float16"),
    Case("llama-tied-odd", "Llama", {"tie_word_embeddings": True, "vocab_size": 101}),
    Case("llama-biases", "Llama", {"attention_bias": True, "mlp_bias": True}),
    Case("llama-attention-biases", "Llama", {"attention_bias": True}),
    Case("llama-mlp-biases", "Llama", {"mlp_bias": True}),
    Case("llama-wide-heads", "Llama", {"head_dim": 24}),
    Case("llama3-rope", "Llama", {"rope_parameters": LLAMA3_ROPE}, dtype="bfloat16"),
    Case("llama-linear-rope", "Llama", {"rope_parameters": LINEAR_ROPE}),
    Case("llama-shards", "Llama", {"hidden_size": 64}, shard_bytes=60_000),
    Case("mistral", "Mistral", {"sliding_window": None, "head_dim": 8}),
    Case("mistral-window", "Mistral", {"sliding_window": 12, "head_dim": 8}),
    Case("gemma", "Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    Case("gemma-untied", "Gemma", {"head_dim": 16, "tie_word_embeddings": False}, dtype="bfloat16"),
    Case("qwen2", "Qwen2"),
    Case("phi3", "Phi3", {"sliding_window": 12}, dtype="bfloat16"),
    Case("phi3-mha-shards", "Phi3", {"num_key_value_heads": 4, "hidden_size": 64}, shard_bytes=60_000),
    Case("qwen2-tied-yarn", "Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN_ROPE}),
]  # fmt: skip


def make_model(case: Case, directory: Path, seed: int = 0) -> Path:
    """Save a random model of a case with transformers, every weight random (norms and biases too)."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    config_class = getattr(transformers, f"{case.architecture}Config")
    model_class = getattr(transformers, f"{case.architecture}ForCausalLM")
    torch.manual_seed(seed)
    # Phi-3's padding token lies beyond so small a vocabulary.
    config = config_class(**{**SMALL, "pad_token_id": None, **case.changes})
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = model.to(getattr(torch, case.dtype))
    if case.shard_bytes is None:
        model.save_pretrained(directory)
    else:
        model.save_pretrained(directory, max_shard_size=case.shard_bytes)
    return directory


def read_weights(directory: Path) -> dict[str, Any]:
    """All tensors of a directory, by the safetensors library."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def same_bits(left: Any, right: Any) -> bool:
    """Whether two tensors agree in type, shape and every bit."""
    import torch

    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    bits = {4: torch.int32, 2: torch.int16}[left.element_size()]
    return bool(left.view(bits).equal(right.view(bits)))


def write_tokenizer(directory: Path, base_size: int, pieces: list[list[int]]) -> Path:
    """A tokenizer directory of ``base_size`` + added pieces, each made of the given base ids.

    The tokenizer itself splits on spaces and knows the words ``w0``, ``w1``, ...
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    size = base_size + len(pieces)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "model_max_length": 128}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    lines = ["id\tpiece\tscore\tbase_ids"]
    for offset, ids in enumerate(pieces):
        number = base_size + offset
        lines.append(f"{number}\tw{number}\t{-offset - 1}.0\t{' '.join(map(str, ids))}")
    (directory / "pieces.tsv").write_text("\n".join(lines) + "\n")
    return directory
