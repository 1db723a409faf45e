"""Round trips of generated models: any sizes, types, biases, file cuts and extensions."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from convert_material import read_weights, same_bits, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.conversion.weights import hf_tensors
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint, verify_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig


@dataclass(frozen=True)
class Generated:
    config: dict[str, Any]
    dtype: torch.dtype
    pieces: list[list[int]]
    files: int
    shard_bytes: int
    seed: int


@st.composite
def models(draw: st.DrawFn) -> Generated:
    family = draw(st.sampled_from(["llama", "mistral", "gemma", "qwen2"]))
    kv_heads = draw(st.integers(1, 3))
    rows = draw(st.integers(2, 40))
    config = {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "hidden_size": draw(st.integers(1, 20)),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 4)),
        "vocab_size": rows,
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "torch_dtype": "whatever",
    }
    piece = st.lists(st.integers(0, rows - 1), max_size=4)
    return Generated(
        config=config,
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        pieces=draw(st.lists(piece, max_size=5)),
        files=draw(st.integers(1, 3)),
        shard_bytes=draw(st.sampled_from([1_000_000, 5_000_000_000])),
        seed=draw(st.integers(0, 1000)),
    )


def write_model(made: Generated, directory: Path) -> dict[str, torch.Tensor]:
    """Save random bits: every pattern that is a finite number must survive; a base with others is refused."""
    generator = torch.Generator().manual_seed(made.seed)
    tensors = {}
    for name, shape in hf_tensors(ModelSpec.from_hf(made.config)):
        count = torch.Size(shape).numel() * made.dtype.itemsize
        raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        numbers = raw.view(made.dtype).reshape(shape)
        numbers[~numbers.isfinite()] = 1.0
        tensors[name] = numbers
    if made.pieces:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = torch.randn(tensors[name].shape, generator=generator).to(made.dtype)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(made.config))
    names = list(tensors)
    if made.files == 1:
        save_file(tensors, directory / "model.safetensors")
        return tensors
    weight_map = {}
    for number in range(made.files):
        held = names[number :: made.files]
        file = f"part-{number}.safetensors"
        save_file({name: tensors[name] for name in held}, directory / file)
        weight_map.update(dict.fromkeys(held, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


@settings(max_examples=25, deadline=None)
@given(made=models())
def test_round_trip_of_generated_models(made: Generated) -> None:
    rows = made.config["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        base, megatron, export = (Path(folder) / name for name in ("base", "megatron", "export"))
        before = write_model(made, base)
        tokenizer = write_tokenizer(Path(folder) / "tokenizer", rows, made.pieces)
        import_checkpoint(base, megatron, tokenizer_dir=tokenizer)
        settings_ = ExportConfig(shard_bytes=made.shard_bytes, verify=False)
        export_checkpoint(megatron, export, tokenizer_dir=tokenizer, base_dir=base, config=settings_)
        after = read_weights(export)
        assert sorted(before) == sorted(after)
        for name, tensor in before.items():
            vocabulary = name in ("model.embed_tokens.weight", "lm_head.weight")
            found = after[name][:rows].contiguous() if vocabulary else after[name]
            assert same_bits(tensor, found), name
            if vocabulary:
                assert after[name].shape[0] == rows + len(made.pieces)
                assert bool(after[name][rows:].isfinite().all())
        assert verify_checkpoint(export, megatron)["weights"]["tensors"] == len(before)
