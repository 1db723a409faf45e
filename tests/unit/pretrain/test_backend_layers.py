"""What Megatron is asked to build for each backend; in a process of its own, since Megatron on a CPU patches torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, types
from tsugiki.pretrain.runtime.megatron_cpu import import_megatron
import_megatron()
import torch
from tsugiki.pretrain.model import gpt as model
from tsugiki.pretrain.config import ParallelConfig
from tsugiki.pretrain.model.layers import RMSNorm, SelfAttentionCore
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.model.backend import Acceleration

class Engine(torch.nn.Module):
    def __init__(self, inputs, outputs, *, bias):
        super().__init__()
        self.bias = bias

def engine_spec():
    attention = types.SimpleNamespace(linear_qkv=Engine, core_attention=None, linear_proj=Engine)
    return types.SimpleNamespace(submodules=types.SimpleNamespace(
        input_layernorm="fused", pre_mlp_layernorm="fused",
        self_attention=types.SimpleNamespace(submodules=attention)))

model.get_gpt_layer_with_transformer_engine_spec = engine_spec
shape = dict(layers=2, hidden_size=64, ffn_size=96, heads=4, kv_heads=2, head_dim=16, vocabulary_size=101,
             max_positions=64)
result = {}
for family, facts in {
    "llama": dict(family="llama"),
    "biases": dict(family="llama", qkv_bias=True, output_bias=True),
    "gemma": dict(family="gemma", norm_offset=1.0, activation="gelu_tanh"),
}.items():
    spec = ModelSpec(**shape, **facts)
    for name, acceleration in {
        "plain": Acceleration(),
        "engine": Acceleration(backend="transformer_engine", compile=True, fused_loss=True, accumulate=True,
                               attention="fast"),
        "fp8": Acceleration(backend="transformer_engine", compile=True, fused_loss=True, accumulate=True,
                            attention="fast", fp8_recipe="tensorwise"),
    }.items():
        layer = model.layer_spec(spec, acceleration).submodules
        attention = layer.self_attention.submodules
        config = model.transformer_config(spec, ParallelConfig(), precision="bf16", acceleration=acceleration)
        result[family + " " + name] = {
            "core": attention.core_attention is SelfAttentionCore,
            "norm": "ours" if layer.input_layernorm is RMSNorm else layer.input_layernorm,
            "changed": [issubclass(part, Engine) and part is not Engine
                        for part in (attention.linear_qkv, attention.linear_proj)],
            "bias": getattr(attention.linear_proj(1, 1, bias=False), "bias", None) if name == "engine" else None,
            "config": {key: str(getattr(config, key)) for key in (
                "fp8", "fp8_recipe", "gradient_accumulation_fusion", "bias_activation_fusion",
                "layernorm_zero_centered_gamma", "add_bias_linear", "add_qkv_bias")},
            "activation": config.activation_func.__name__,
        }
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def built() -> dict[str, dict]:
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    return json.loads(output.stdout)


@pytest.mark.slow
def test_attention_is_ours_in_every_tier(built: dict[str, dict]) -> None:
    assert all(layer["core"] for layer in built.values())


def test_norms_are_in_the_linear_layers_of_transformer_engine(built: dict[str, dict]) -> None:
    assert built["llama plain"]["norm"] == "ours"
    assert built["llama engine"]["norm"] == "fused"
    assert built["gemma engine"]["config"]["layernorm_zero_centered_gamma"] == "True"
    assert built["llama engine"]["config"]["layernorm_zero_centered_gamma"] == "False"


def test_biases_that_megatrons_switch_cannot_say(built: dict[str, dict]) -> None:
    assert built["biases engine"]["changed"] == [True, True]
    assert built["biases engine"]["bias"] is True
    assert built["biases engine"]["config"]["add_bias_linear"] == "False"
    assert built["llama engine"]["changed"] == [False, False]


def test_megatrons_configuration(built: dict[str, dict]) -> None:
    plain, engine, fp8 = (built[f"gemma {name}"] for name in ("plain", "engine", "fp8"))
    for switch in ("gradient_accumulation_fusion", "bias_activation_fusion"):
        assert plain["config"][switch] == "False"
        assert engine["config"][switch] == "True"
    assert plain["activation"] == "_gelu_tanh"
    assert engine["activation"] == "gelu"  # Megatron's fused GeGLU, an approximation by tanh
    assert engine["config"]["fp8"] == "None"
    assert fp8["config"]["fp8"] == "hybrid"
    assert fp8["config"]["fp8_recipe"] == "tensorwise"
