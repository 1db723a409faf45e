"""Longer contexts: what the graft section asks for, written as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_material import LLAMA3_ROPE, Case, make_model, read_weights, same_bits, write_tokenizer
from pydantic import ValidationError

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pipeline import load_experiment
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig, GraftConfig
from tsugiki.pretrain.model.context_extension import extended_context, with_context

ROOT = Path(__file__).parents[3]
YI = ROOT / "configs" / "models" / "yi-34b.json"


def graft(**settings: Any) -> GraftConfig:
    return GraftConfig.model_validate(settings)


def test_nothing_asked_for_changes_nothing() -> None:
    spec = ModelSpec.from_hf(YI)
    assert extended_context(spec, graft()) == spec
    config = json.loads(YI.read_text())
    assert with_context(config, spec, spec) == config


def test_factor_and_original_positions_follow_from_the_base() -> None:
    spec = ModelSpec.from_hf(YI)
    linear = extended_context(spec, graft(max_positions=16384, rope_scaling={"type": "linear"}))
    assert linear.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    yarn = extended_context(spec, graft(max_positions=16384, rope_scaling={"type": "yarn", "beta_fast": 16}))
    assert yarn.rope_scaling == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0,
    }  # fmt: skip
    # The defaults are Llama 3.1's own settings.
    wide = extended_context(
        ModelSpec.from_hf({**json.loads(YI.read_text()), "max_position_embeddings": 8192}),
        graft(max_positions=131_072, rope_theta=5e5, rope_scaling={"type": "llama3", "factor": 8}),
    )
    assert (wide.rope_theta, wide.max_positions) == (5e5, 131_072)
    assert wide.rope_scaling == {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    # A base that is scaled already keeps its original length.
    scaled = ModelSpec.from_hf({**json.loads(YI.read_text()), "rope_parameters": LLAMA3_ROPE})
    again = extended_context(scaled, graft(rope_scaling={"type": "llama3", "factor": 16}))
    assert again.rope_scaling is not None
    assert again.rope_scaling["original_max_position_embeddings"] == 16


@pytest.mark.parametrize("style", ["rope_parameters", "rope_theta"])
def test_written_in_the_style_of_the_base(style: str) -> None:
    old = json.loads(YI.read_text())
    new = {key: value for key, value in old.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6}
    config = old if style == "rope_theta" else new
    base = ModelSpec.from_hf(config)
    asked = extended_context(base, graft(max_positions=8192, rope_theta=1e7, rope_scaling={"type": "yarn"}))
    written = with_context(config, base, asked)
    assert set(written) - {"rope_scaling"} == set(config)
    assert ModelSpec.from_hf(written) == asked
    from transformers import LlamaConfig

    read = LlamaConfig(**written)
    assert read.max_position_embeddings == 8192
    assert read.rope_parameters["rope_theta"] == 1e7
    assert read.rope_parameters["factor"] == 2.0
    assert read.rope_parameters["original_max_position_embeddings"] == 4096


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_positions": 2048}, "fewer positions"),
        ({"rope_scaling": {"type": "yarn"}}, "how much to scale"),
    ],
)
def test_contexts_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extended_context(ModelSpec.from_hf(YI), graft(**settings))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "dynamic"}, "linear"),
        ({"type": "linear", "beta_fast": 32}, "belongs to type: yarn"),
        ({"type": "yarn", "low_frequency_factor": 1}, "belongs to type: llama3"),
        ({"type": "llama3", "low_frequency_factor": 4}, "below high_frequency_factor"),
        ({"type": "linear", "factor": 0.5}, "greater than or equal to 1"),
    ],
)
def test_scalings_that_make_no_sense(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        graft(rope_scaling=scaling)


def test_export_carries_the_context_and_every_weight(tmp_path: Path) -> None:
    base = make_model(Case("short", "Mistral", {"max_position_embeddings": 32}), tmp_path / "base")
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 97, [])
    config = graft(max_positions=128, rope_scaling={"type": "linear"})
    import_checkpoint(base, tmp_path / "megatron", config=config)
    export_checkpoint(
        tmp_path / "megatron", tmp_path / "hf", tokenizer_dir=tokenizer, config=ExportConfig(verify=False)
    )
    from transformers import AutoConfig

    read = AutoConfig.from_pretrained(tmp_path / "hf")
    assert read.max_position_embeddings == 128
    assert read.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    before, after = read_weights(base), read_weights(tmp_path / "hf")
    assert [name for name in before if not same_bits(before[name], after[name])] == []


def test_sequences_longer_than_the_positions_are_refused_at_their_line() -> None:
    recipe = ROOT / "configs" / "recipes" / "sus-chat-34b.yaml"
    with pytest.raises(ConfigError, match="longer than the model's positions") as caught:
        load_experiment(recipe, ["graft.max_positions=null", f"base.architecture={YI}"])
    shown = str(caught.value)
    assert "train.sequence_length (" in shown and "sus-chat-34b.yaml" in shown
    assert "at most 4096 (graft.max_positions, else the base" in shown
    assert "set graft.max_positions: 8192" in shown
