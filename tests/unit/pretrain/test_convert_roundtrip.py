"""Hugging Face -> Megatron -> Hugging Face gives back every bit, for every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from convert_material import CASES, SMALL, Case, make_model, read_weights, same_bits, write_tokenizer

from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint, verify_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig, GraftConfig

NO_VERIFY = ExportConfig(verify=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_round_trip_is_bitwise(case: Case, tmp_path: Path) -> None:
    base = make_model(case, tmp_path / "base")
    import_checkpoint(base, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", base_dir=base, config=NO_VERIFY)
    before, after = read_weights(base), read_weights(tmp_path / "export")
    assert sorted(before) == sorted(after)
    assert [name for name in before if not same_bits(before[name], after[name])] == []
    old, new = (json.loads((path / "config.json").read_text()) for path in (base, tmp_path / "export"))
    rope = dict(old["rope_parameters"])
    theta, kind = rope.pop("rope_theta"), rope["rope_type"]
    earlier = {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else rope,
        "torch_dtype": old["dtype"],
    }
    assert new == old | earlier
    assert verify_checkpoint(base, tmp_path / "megatron")["weights"]["tensors"] == len(before)


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[8], CASES[12]], ids=lambda case: case.name)
def test_extension_adds_mean_rows_and_leaves_the_rest_alone(case: Case, tmp_path: Path) -> None:
    base = make_model(case, tmp_path / "base")
    rows = {**SMALL, **case.changes}["vocab_size"]
    pieces = [[3, 4], [5, 6, 7], [], [rows - 1]]
    tokenizer = write_tokenizer(tmp_path / "tokenizer", rows, pieces)
    report = import_checkpoint(base, tmp_path / "megatron", tokenizer_dir=tokenizer)
    assert report["vocabulary_size"] == rows + 4 and report["new_rows"] == 4
    export_checkpoint(
        tmp_path / "megatron", tmp_path / "export", tokenizer_dir=tokenizer, base_dir=base, config=NO_VERIFY
    )
    before, after = read_weights(base), read_weights(tmp_path / "export")
    assert sorted(before) == sorted(after)
    for name, old in before.items():
        new = after[name]
        if old.shape[0] != rows:
            assert same_bits(old, new), name
            continue
        assert same_bits(old, new[:rows].clone()), name
        means = [old[ids].float().mean(0) for ids in pieces if ids]
        # The piece made of nothing is a reserved one: it gets the mean of the other new rows.
        means.insert(2, torch.stack(means).mean(0))
        torch.testing.assert_close(new[rows:], torch.stack(means).to(old.dtype), rtol=0, atol=1e-7)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["vocab_size"] == rows + 4


@pytest.mark.parametrize(("asked", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_types_on_request(asked: str, expected: torch.dtype, tmp_path: Path) -> None:
    base = make_model(CASES[2], tmp_path / "base")
    import_checkpoint(base, tmp_path / "megatron", config=GraftConfig(dtype="fp32"))
    export_checkpoint(
        tmp_path / "megatron", tmp_path / "export", config=ExportConfig(dtype=asked, verify=False)
    )
    before, after = read_weights(base), read_weights(tmp_path / "export")
    assert all(same_bits(before[name].to(expected), after[name]) for name in before)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(expected).removeprefix("torch.")


def test_mixed_types_come_back_as_they_were(tmp_path: Path) -> None:
    base = make_model(CASES[1], tmp_path / "base")
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in weights.items()}
    save_file(mixed, base / "model.safetensors", metadata={"format": "pt"})
    import_checkpoint(base, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", config=NO_VERIFY)
    after = read_weights(tmp_path / "export")
    assert all(same_bits(tensor, after[name]) for name, tensor in mixed.items())


def test_export_is_cut_into_files_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_model(
        Case("larger", "Llama", {"hidden_size": 128, "intermediate_size": 512}), tmp_path / "base"
    )
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 97, [[1, 2]] * 3)
    import_checkpoint(base, tmp_path / "megatron", tokenizer_dir=tokenizer)
    config = ExportConfig(shard_bytes=1_000_000, verify=False)
    counts = export_checkpoint(
        tmp_path / "megatron", tmp_path / "export", tokenizer_dir=tokenizer, base_dir=base, config=config
    )
    files = sorted((tmp_path / "export").glob("model-*.safetensors"))
    assert counts["files"] == len(files) > 2
    assert all(path.stat().st_size <= 1_000_000 + 10_000 for path in files)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", low_cpu_mem_usage=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    words = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert len(words) == model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 100
    prompt = words("w3 w98", return_tensors="pt").input_ids
    assert prompt.tolist() == [[3, 98]]
    assert model.generate(prompt, max_new_tokens=4, do_sample=False).shape[1] > 2


def test_repeated_import_and_export_write_the_same_bytes(tmp_path: Path) -> None:
    base = make_model(CASES[0], tmp_path / "base")
    for run in ("a", "b"):
        import_checkpoint(base, tmp_path / run / "m", workers=1 if run == "a" else 3)
        export_checkpoint(tmp_path / run / "m", tmp_path / run / "hf", config=NO_VERIFY)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_first_release_of_yi(tmp_path: Path) -> None:
    """Its own model type and names of the norms; the result is a plain Llama."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    base = make_model(CASES[0], tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    old = {
        name.replace("input_layernorm", "ln1").replace("post_attention_layernorm", "ln2"): tensor
        for name, tensor in weights.items()
    }
    save_file(old, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    yi = {**config, "model_type": "Yi", "architectures": ["YiForCausalLM"], "auto_map": {"AutoModel": "x.Y"}}
    (base / "config.json").write_text(json.dumps(yi))
    import_checkpoint(base, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", config=NO_VERIFY)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "export").state_dict()
    assert all(same_bits(tensor, after[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("method", ["weighted", "similarity", "multivariate", "random"])
def test_other_initialisations(method: str, tmp_path: Path) -> None:
    base = make_model(CASES[0], tmp_path / "base")
    pieces = [[3, 4], [5, 6, 7], [], [96, 1], *([index, index + 1, index + 2] for index in range(60))]
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 97, pieces)
    config = GraftConfig.model_validate({"init": method})
    report = import_checkpoint(base, tmp_path / "megatron", tokenizer_dir=tokenizer, config=config)
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", config=NO_VERIFY)
    after = read_weights(tmp_path / "export")
    new = {name: after[name][97:] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    for name, rows in new.items():
        assert rows.shape == (64, 32) and bool(rows.isfinite().all()) and bool(rows.norm(dim=1).min() > 0)
        lengths = report["row_norms"][name]
        assert lengths["new_mean"] == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-5)
        assert lengths["base_mean"] == pytest.approx(after[name][:97].norm(dim=1).mean().item(), rel=1e-5)
    assert not new["model.embed_tokens.weight"].equal(new["lm_head.weight"])
    if method == "weighted":
        old = after["lm_head.weight"][:97]
        expected = (1 * old[5] + 2 * old[6] + 3 * old[7]) / 6
        torch.testing.assert_close(new["lm_head.weight"][1], expected, rtol=0, atol=1e-7)
