"""The one FLOPs formula: by hand, and counted by torch on transformers' models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from tsugiki.experiment.model.family import family_names, find_family
from tsugiki.experiment.model.model_flops import forward_flops_per_token, training_flops_per_token
from tsugiki.experiment.model.model_spec import ModelSpec

MODELS = Path(__file__).parents[4] / "configs" / "models"
NATIVE = [name for name in family_names() if find_family(name).converted_to is None]


def model(name: str) -> ModelSpec:
    return ModelSpec.from_hf(MODELS / f"{name}.json")


def test_flops_of_the_worked_example() -> None:
    """Llama-2 7B at 4,096: 32 x (8h^2 + 6hf + 4hs) + 2hV, by hand."""
    h, f, s, v = 4096, 11008, 4096, 32_000
    by_hand = 32 * (8 * h * h + 6 * h * f + 4 * h * s) + 2 * h * v
    assert forward_flops_per_token(model("llama-2-7b"), s, causal=False) == by_hand
    halved = 32 * (8 * h * h + 6 * h * f + 4 * h * (s + 1) / 2) + 2 * h * v
    assert forward_flops_per_token(model("llama-2-7b"), s, causal=True) == halved


def test_sliding_window_bounds_attention() -> None:
    spec = model("mistral-7b-v0.1").model_copy(update={"sliding_window": 2})
    # Positions 1, 2, 2, 2 over four tokens: 7 / 4.
    plain = spec.model_copy(update={"sliding_window": None})
    width = 4 * spec.heads * spec.head_dim * spec.layers
    difference = forward_flops_per_token(plain, 4, causal=True) - forward_flops_per_token(
        spec, 4, causal=True
    )
    assert difference == width * ((1 + 2 + 3 + 4) / 4 - 7 / 4)


@pytest.mark.parametrize("family", NATIVE)
def test_torch_counts_the_same_on_transformers_model(family: str) -> None:
    settings = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(family, **settings, **find_family(family).full_attention)
    spec = ModelSpec.from_hf(json.loads(config.to_json_string()))
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as forward:
        loss = network(ids, labels=ids).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # transformers multiplies all positions with each other; its rotary frequencies are a product of a column and a
    # row, counted once for the batch, which the formula leaves out.
    rotary = forward.get_total_flops() - 2 * 24 * forward_flops_per_token(spec, 24, causal=False)
    assert rotary in (0, 2 * spec.head_dim // 2 * 24, 2 * 2 * spec.head_dim // 2 * 24)
    both = forward.get_total_flops() - rotary + backward.get_total_flops()
    assert both == 2 * 24 * training_flops_per_token(spec, 24, causal=False)
