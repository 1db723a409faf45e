"""Merges of models: mergekit's numbers, and rows that belong to pieces."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsugiki.experiment.errors import CheckpointError, ConfigError
from tsugiki.pretrain.merging.arithmetic import dropped, merged
from tsugiki.tools import merge_checkpoints

ROOT = Path(__file__).resolve().parents[3]
TABLE = json.loads((ROOT / "tests/fixtures/merging/mergekit.json").read_text())["cases"]
_SPEC = importlib.util.spec_from_file_location("merge_mergekit", ROOT / "benchmarks/merge_mergekit.py")
assert _SPEC is not None and _SPEC.loader is not None
SCRIPT = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(SCRIPT)


@pytest.mark.parametrize("name", SCRIPT.CASES)
def test_as_mergekit(name: str) -> None:
    case = SCRIPT.CASES[name]
    base, *models = SCRIPT.tensors()
    method: Any = name.removesuffix("_normalised").removesuffix("_sum")
    found = base + merged(
        method, base, models, case["weights"], normalise=case["normalise"], densities=case["densities"],
        generator=torch.Generator(),
    )  # fmt: skip
    assert torch.allclose(found, torch.tensor(TABLE[name]), rtol=0, atol=1e-6)


def test_dare_keeps_a_share_and_its_sum() -> None:
    delta = torch.ones(200, 200)
    found = dropped(delta, 0.3, torch.Generator().manual_seed(1))
    assert sorted(set(found.flatten().tolist())) == pytest.approx([0, 1 / 0.3])
    assert float(found.mean()) == pytest.approx(1, abs=0.03)


PIECES = {
    "base": ["<unk>", "a", "b", "c"],
    "instruct": ["<unk>", "a", "b", "c", "<turn>"],
    "ours": ["<unk>", "c", "a", "new", "b"],  # another order, and a piece that the others lack
}


def write_model(folder: Path, pieces: list[str], seed: int, width: int = 3) -> dict[str, torch.Tensor]:
    from tokenizers import Tokenizer, models

    folder.mkdir()
    vocabulary = {piece: row for row, piece in enumerate(pieces)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(pieces)}))
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (len(pieces), width), "model.layers.0.self_attn.q_proj.weight": (width, width),
        "model.layers.0.mlp.up_proj.weight": (5, width), "model.norm.weight": (width,),
        "lm_head.weight": (len(pieces), width),
    }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: write_model(tmp_path / name, pieces, seed) for seed, (name, pieces) in enumerate(PIECES.items())
    }


def merge(tmp_path: Path, text: str) -> dict[str, torch.Tensor]:
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(text.replace("DIR", str(tmp_path)))
    merge_checkpoints(recipe, tmp_path / "out")
    return load_file(tmp_path / "out/model.safetensors")


def test_chat_vector(tmp_path: Path, folders: dict[str, dict[str, torch.Tensor]]) -> None:
    """Rows go by piece; a new one keeps its row, and so does a group of weight 0."""
    found = merge(
        tmp_path,
        "{method: task_arithmetic, base: DIR/base, onto: DIR/ours, models: [{path: DIR/instruct, weight: 0.5}], "
        "groups: {norms: 0, mlp: 2}}",
    )
    base, instruct, ours = (folders[name] for name in ("base", "instruct", "ours"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(found[name], ours[name] + 0.5 * (instruct[name] - base[name]), atol=1e-6)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(found[name], ours[name] + (instruct[name] - base[name]), atol=1e-6)
    assert torch.equal(found["model.norm.weight"], ours["model.norm.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for row, piece in enumerate(PIECES["ours"]):
            expected = ours[name][row]
            if piece != "new":
                place = PIECES["base"].index(piece)
                expected = expected + 0.5 * (instruct[name][place] - base[name][place])
            assert torch.allclose(found[name][row], expected, atol=1e-6), piece
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "ours/tokenizer.json").read_bytes()


def test_linear_takes_the_first_model_where_another_lacks_a_piece(
    tmp_path: Path, folders: dict[str, dict[str, torch.Tensor]]
) -> None:
    found = merge(
        tmp_path, "{method: linear, models: [{path: DIR/ours, weight: 3}, {path: DIR/base, weight: 1}]}"
    )
    ours, base = folders["ours"], folders["base"]
    name = "model.norm.weight"
    assert torch.allclose(found[name], (3 * ours[name] + base[name]) / 4, atol=1e-6)
    name = "lm_head.weight"
    assert torch.allclose(found[name][3], ours[name][3]), "the new piece"
    assert torch.allclose(found[name][1], (3 * ours[name][1] + base[name][3]) / 4, atol=1e-6), "c"


def test_the_same_again(tmp_path: Path, folders: dict[str, dict[str, torch.Tensor]]) -> None:
    recipe = "{method: dare_ties, base: DIR/base, models: [{path: DIR/instruct, density: 0.5}, {path: DIR/ours, density: 0.5}]}"
    first = merge(tmp_path, recipe)
    (tmp_path / "out").rename(tmp_path / "before")
    again = merge(tmp_path, recipe)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_cannot_be_merged_is_said(tmp_path: Path, folders: dict[str, dict[str, torch.Tensor]]) -> None:
    write_model(tmp_path / "wide", PIECES["base"], 9, width=4)
    with pytest.raises(CheckpointError, match="models of different shapes"):
        merge(tmp_path, "{method: linear, models: [{path: DIR/base}, {path: DIR/wide}]}")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    tied = load_file(tmp_path / "base/model.safetensors")
    del tied["lm_head.weight"]
    save_file(tied, tmp_path / "base/model.safetensors")
    with pytest.raises(CheckpointError, match="lacks a tensor of the others"):
        merge(tmp_path, "{method: linear, models: [{path: DIR/ours}, {path: DIR/base}]}")
    with pytest.raises(ConfigError, match="a base for every method but linear"):
        merge(tmp_path, "{method: ties, models: [{path: DIR/base}]}")
