"""ModelSpec against transformers' own configurations and models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from convert_material import CASES, LLAMA3_ROPE, SMALL, Case
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugiki.experiment.errors import CheckpointError, ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.conversion.weights import hf_tensors, merge, split, weight_table


def config_of(case: Case) -> Any:
    settings = {**SMALL, "pad_token_id": None, **case.changes}
    return getattr(transformers, f"{case.architecture}Config")(**settings)


def empty_model(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tensors_and_parameters_are_those_of_transformers(case: Case) -> None:
    config = config_of(case)
    spec = ModelSpec.from_hf(json.loads(config.to_json_string()))
    model = empty_model(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if spec.tied_embeddings:
        expected.pop("lm_head.weight")
    assert dict(hf_tensors(spec)) == expected
    assert spec.parameters == model.num_parameters()


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # As published; fields that do not describe the architecture left out.
    "llama-1": (
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
         "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "vocab_size": 32000, "hidden_act": "silu"},
        {"kv_heads": 32, "head_dim": 128, "rope_theta": 10000.0, "max_positions": 2048,
         "parameters": 6_738_415_616},
    ),
    "mistral-7b-v0.1": (
        {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
         "num_key_value_heads": 8, "num_hidden_layers": 32, "rms_norm_eps": 1e-05, "vocab_size": 32000,
         "rope_theta": 10000.0, "sliding_window": 4096, "max_position_embeddings": 32768},
        {"sliding_window": 4096, "norm_epsilon": 1e-5, "parameters": 7_241_732_096},
    ),
    "mistral-7b-v0.3": (
        {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
         "num_key_value_heads": 8, "num_hidden_layers": 32, "rms_norm_eps": 1e-05, "vocab_size": 32768,
         "rope_theta": 1000000.0, "sliding_window": None, "max_position_embeddings": 32768},
        {"sliding_window": None, "rope_theta": 1e6, "parameters": 7_248_023_552},
    ),
    "llama-3.2-1b": (
        {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
         "num_key_value_heads": 8, "num_hidden_layers": 16, "head_dim": 64, "rms_norm_eps": 1e-05,
         "vocab_size": 128256, "rope_theta": 500000.0, "tie_word_embeddings": True,
         "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                          "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
        {"tied_embeddings": True, "rope_theta": 5e5, "parameters": 1_235_814_400,
         "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0,
                          "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}},
    ),
    "gemma-7b": (
        {"model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "num_attention_heads": 16,
         "num_key_value_heads": 16, "num_hidden_layers": 28, "head_dim": 256, "rms_norm_eps": 1e-06,
         "vocab_size": 256000, "hidden_act": "gelu"},
        {"activation": "gelu_tanh", "norm_offset": 1.0, "embedding_scale": 3072**0.5, "tied_embeddings": True,
         "parameters": 8_537_680_896},
    ),
    "yi-34b": (
        {"model_type": "llama", "hidden_size": 7168, "intermediate_size": 20480, "num_attention_heads": 56,
         "num_key_value_heads": 8, "num_hidden_layers": 60, "rms_norm_eps": 1e-05, "vocab_size": 64000,
         "rope_theta": 5000000.0, "max_position_embeddings": 4096},
        {"kv_heads": 8, "rope_theta": 5e6, "parameters": 34_388_917_248},
    ),
    "yi-first-release": (
        {"model_type": "Yi", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
         "num_key_value_heads": 4, "num_hidden_layers": 32, "vocab_size": 64000, "rope_theta": 5000000.0},
        {"family": "llama", "kv_heads": 4},
    ),
    "qwen2-7b": (
        {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
         "num_key_value_heads": 4, "num_hidden_layers": 28, "vocab_size": 152064, "rope_theta": 1000000.0,
         "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28},
        {"qkv_bias": True, "output_bias": False, "sliding_window": None, "parameters": 7_615_616_512},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_configurations(name: str) -> None:
    config, expected = PUBLISHED[name]
    spec = ModelSpec.from_hf(config)
    assert {key: getattr(spec, key) for key in expected} == expected


def test_rope_in_both_styles() -> None:
    old = {key: value for key, value in LLAMA3_ROPE.items() if key not in ("rope_theta", "rope_type")}
    base = json.loads(config_of(CASES[0]).to_json_string())
    new_style = ModelSpec.from_hf({**base, "rope_parameters": LLAMA3_ROPE})
    del base["rope_parameters"]
    for key in ("type", "rope_type"):
        old_style = ModelSpec.from_hf({**base, "rope_theta": 5e5, "rope_scaling": {**old, key: "llama3"}})
        assert old_style == new_style
    assert ModelSpec.from_hf({**base, "rope_theta": 7.0, "rope_scaling": None}).rope_theta == 7.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads"),
        ({"head_dim": 7}, "must be even"),
        ({"vocab_size": None}, "vocab_size"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
    ],
)
def test_what_cannot_be_represented_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelSpec.from_hf({**json.loads(config_of(CASES[0]).to_json_string()), **changes})


@pytest.mark.parametrize("model_type", ["gpt2", "llama4", "", None])
def test_an_unknown_model_type_is_refused_by_name(model_type: str | None) -> None:
    with pytest.raises(ConfigError, match="one of gemma, llama, mistral") as caught:
        ModelSpec.from_hf({**json.loads(config_of(CASES[0]).to_json_string()), "model_type": model_type})
    assert "config.json: model_type" in str(caught.value)


def test_qwen2_with_both_kinds_of_attention_is_refused() -> None:
    config = transformers.Qwen2Config(
        **{**SMALL, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    )
    with pytest.raises(CheckpointError, match="same attention in every layer"):
        ModelSpec.from_hf(json.loads(config.to_json_string()))


def test_saved_and_loaded(tmp_path: Path) -> None:
    spec = ModelSpec.from_hf(PUBLISHED["llama-3.2-1b"][0])
    spec.save(tmp_path)
    assert ModelSpec.load(tmp_path) == spec == ModelSpec.load(tmp_path / "model.json")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match="unreadable"):
        ModelSpec.load(tmp_path)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    kv_heads = draw(st.integers(1, 4))
    biases = draw(st.booleans())
    return ModelSpec(
        family="llama",
        layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 12)) * 2,
        ffn_size=draw(st.integers(1, 20)),
        heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 5)) * 2,
        vocabulary_size=draw(st.integers(1, 50)),
        max_positions=8,
        tied_embeddings=draw(st.booleans()),
        qkv_bias=biases,
        output_bias=biases,
        mlp_bias=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(spec=specs())
def test_table_covers_the_model_and_inverts(spec: ModelSpec) -> None:
    names = [name for name, _ in hf_tensors(spec)]
    assert len(set(names)) == len(names)
    for weight in weight_table(spec):
        parts = [torch.randn(part.shape(spec)) for part in weight.parts]
        whole = merge(weight, parts, spec)
        assert whole.shape == weight.shape(spec)
        assert all(a.equal(b) for a, b in zip(parts, split(weight, whole, spec), strict=True))
        covered = sorted(row for run in weight.rows(spec) for row in range(run.start, run.start + run.count))
        assert covered == list(range(whole.shape[0]))
        assert [row for start, stop in weight.blocks(spec) for row in range(start, stop)] == covered


def test_qkv_layout_is_megatrons() -> None:
    # Two groups of two queries, width 2: rows of q are 0.., of k 100.., of v 200..
    spec = ModelSpec.from_hf(
        {**json.loads(config_of(CASES[0]).to_json_string()), "head_dim": 2, "hidden_size": 2}
    )
    weight = next(item for item in weight_table(spec) if item.layout == "qkv")
    parts = [torch.arange(start, start + rows)[:, None] for start, rows in ((0, 8), (100, 4), (200, 4))]
    assert merge(weight, parts, spec)[:, 0].tolist() == [
        *(0, 1, 2, 3, 100, 101, 200, 201),
        *(4, 5, 6, 7, 102, 103, 202, 203),
    ]
