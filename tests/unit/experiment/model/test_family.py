"""The registry of model families: against transformers, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.family import family_names, find_family
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pipeline import load_experiment
from tsugiki.pretrain.config import ScratchConfig
from tsugiki.pretrain.convert import import_checkpoint

NATIVE = [name for name in family_names() if find_family(name).converted_to is None]
# What every published config.json says.
LEAST = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize("name", NATIVE)
def test_its_facts_are_those_of_transformers(name: str) -> None:
    family = find_family(name)
    assert family.architectures == (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name],)
    assumed = transformers.AutoConfig.for_model(name)
    assert {key: getattr(assumed, key) for key in family.defaults} == family.defaults
    assert set(family.full_attention) <= set(assumed.to_dict())


@pytest.mark.parametrize("name", NATIVE)
def test_what_config_json_leaves_out_is_as_transformers_reads_it(name: str) -> None:
    short = {"model_type": name, **LEAST}
    read = transformers.AutoConfig.for_model(**short)
    assert ModelSpec.from_hf(short) == ModelSpec.from_hf(json.loads(read.to_json_string(use_diff=False)))


@pytest.mark.parametrize("name", NATIVE)
def test_a_model_from_scratch_is_of_the_family(name: str) -> None:
    settings = ScratchConfig(architecture=name, hidden_size=64, heads=4, kv_heads=2, layers=2).hf_config(97)
    written = transformers.AutoConfig.for_model(**settings)
    spec = ModelSpec.from_hf(json.loads(written.to_json_string(use_diff=False)))
    assert spec == ModelSpec.from_hf(settings)
    assert (spec.head_dim, spec.sliding_window, spec.tied_embeddings) == (16, None, False)


def test_scratch_names_the_known_families() -> None:
    with pytest.raises(ValueError, match="one of gemma, llama, mistral"):
        ScratchConfig(architecture="gpt2")
    with pytest.raises(ValueError, match="one of gemma, llama, mistral"):
        ScratchConfig(architecture="yi")  # transformers has no such model to write


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mistral'") as caught:
        find_family("mistrall", "base/config.json: model_type")
    assert "base/config.json: model_type" in str(caught.value)


EXPERIMENT = """
name: unlisted
base: {path: BASE}
corpus: {sources: [{name: ja, language: ja, path: "ja/*.jsonl", format: jsonl}]}
tokens: {mixture: {total_tokens: 1000}}
train: {sequence_length: 16, global_batch: 2}
"""


@pytest.mark.parametrize("command", [["plan", "e.yaml"], ["run", "e.yaml", "--dry-run"]])
def test_an_unlisted_base_is_refused_before_work_starts(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "gpt_neox", **LEAST}))
    (tmp_path / "e.yaml").write_text(EXPERIMENT.replace("BASE", str(tmp_path / "base")))
    with pytest.raises(ConfigError, match="no such model family"):
        load_experiment(tmp_path / "e.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "gpt_neox" in done.stderr and "one of gemma, llama, mistral" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_unlisted_base_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "gpt_neox", **LEAST}))
    with pytest.raises(ConfigError, match="no such model family"):
        import_checkpoint(tmp_path / "base", tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [("raise OSError('half way')", "OSError: half way"), (None, "No module named 'seed_oss'")],
)
def test_an_installed_family_that_cannot_be_imported_is_named(
    code: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: mine\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[tsugiki.families]\nseed = seed_oss\n")
    if code is not None:
        (tmp_path / "seed_oss.py").write_text(code)
    program = "from tsugiki.experiment.model.family import family_names; family_names()"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "entry point seed in tsugiki.families of package mine" in done.stderr
    assert message in done.stderr
