"""`export.sampling`: what transformers reads from generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from tsugiki.pipeline import load_experiment
from tsugiki.pretrain.conversion.export_hf import _write_generation_config
from tsugiki.pretrain.convert_config import SamplingConfig

BASE = {"bos_token_id": 1, "eos_token_id": [2, 7], "do_sample": True, "temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize("base", [True, False], ids=["base", "no-base"])
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (None, None),
        ({"temperature": 0.99, "top_p": 0.95}, {"do_sample": True, "temperature": 0.99, "top_p": 0.95}),
        ({"temperature": 0}, {"do_sample": False}),
    ],
    ids=["null", "drawn", "greedy"],
)
def test_settings_and_what_the_base_has(
    base: bool, sampling: dict[str, Any] | None, expected: dict[str, Any] | None, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(BASE))
    config = None if sampling is None else SamplingConfig.model_validate(sampling)
    model = {"bos_token_id": 1, "eos_token_id": 2}
    _write_generation_config(tmp_path, model, tmp_path / "base" if base else None, config)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    ids = {"bos_token_id": 1, "eos_token_id": [2, 7] if base else 2}
    if expected is None:
        assert written == (BASE if base else {"_from_model_config": True, **ids})
    else:
        assert written == ids | expected
        read = GenerationConfig.from_pretrained(tmp_path)
        assert read.do_sample == expected["do_sample"] and read.eos_token_id == ids["eos_token_id"]


@pytest.mark.parametrize(
    ("recipe", "temperature", "top_p"), [("swallow-70b-nve", 0.99, 0.95), ("seallm-7b-v2.5", 0.1, None)]
)
def test_recipes_have_what_was_published(recipe: str, temperature: float, top_p: float | None) -> None:
    sampling = load_experiment(recipe, any_layout=True).config.export.sampling
    assert sampling is not None and (sampling.temperature, sampling.top_p) == (temperature, top_p)
