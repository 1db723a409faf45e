"""A base with NaN or infinite weights is refused while it is imported."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from convert_material import CASES, Case, make_model
from safetensors.torch import load_file, save_file

import tsugiki.pretrain.conversion.finite
from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.conversion.finite import require_finite
from tsugiki.pretrain.convert import import_checkpoint
from tsugiki.pretrain.convert_config import GraftConfig
from tsugiki.pretrain.formats.hf_tensor import HfTensor

NARROW = {"float32": CASES[0], "bfloat16": Case("bf16", "Llama", dtype="bfloat16"), "float16": CASES[2]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for dtype, case in NARROW.items():
        make_model(case, folder / dtype)
    return folder


def put(base: Path, name: str, place: tuple[int, ...], value: float) -> None:
    weights = load_file(base / "model.safetensors")
    weights[name][place] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named(made: Path, tmp_path: Path, dtype: str, value: float) -> None:
    base = Path(shutil.copytree(made / dtype, tmp_path / "base"))
    for name, place in (
        ("model.embed_tokens.weight", (96, 5)),
        ("model.layers.3.mlp.down_proj.weight", (31, 47)),
    ):
        shutil.copy(made / dtype / "model.safetensors", base / "model.safetensors")
        put(base, name, place, value)
        with pytest.raises(CheckpointError, match="not a finite number") as caught:
            import_checkpoint(base, tmp_path / "out")
        assert f"{base / 'model.safetensors'}: {name}, row {place[0]}" in str(caught.value)
        assert f"{value} in column {place[1]}" in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_norms_and_rows_beyond_the_first_piece(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsugiki.pretrain.conversion.finite, "_READ_BYTES", 300)
    base = Path(shutil.copytree(made / "float32", tmp_path / "base"))
    import_checkpoint(base, tmp_path / "whole")
    put(base, "model.norm.weight", (30,), math.nan)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight, row 30"):
        import_checkpoint(base, tmp_path / "out")


def test_a_value_that_overflows_in_the_type_asked_for(made: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(made / "bfloat16", tmp_path / "base"))
    put(base, "lm_head.weight", (7, 1), 1e6)
    import_checkpoint(base, tmp_path / "fits")
    with pytest.raises(CheckpointError, match=r"too large for torch\.float16(.|\n)*lm_head\.weight, row 7"):
        import_checkpoint(base, tmp_path / "out", config=GraftConfig(dtype="fp16"))


def test_the_largest_finite_numbers_pass() -> None:
    require_finite(torch.full((4, 4), 3e38), HfTensor("w", Path("f"), "F32", (4, 4), 0), 0)
