"""The fast paths against the plain one in whole models, and GPU against CPU.

The same comparison runs without a GPU for what a CPU can compute; what it cannot is skipped there.
"""

import importlib.util
from typing import Any

import pytest
from parity import compare

PLAIN_TORCH = {"fused_loss": True, "accumulate": True, "attention": "fast"}
FAST = {**PLAIN_TORCH, "compile": True}
LIMIT = {"fp32": 1e-5, "bf16": 1e-2}

CPU_CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "gemma-tp2-sp": (
        2,
        {"family": "gemma", "parallel": {"tensor": 2, "sequence": True}, "recompute": "full"},
    ),
    "biases-bf16": (1, {"family": "biases", "precision": "bf16"}),
    "mistral-documents": (1, {"family": "mistral", "boundaries": True}),
}


def check(result: dict[str, Any], precision: str) -> None:
    assert result["loss"] < LIMIT[precision]
    assert len(result["gradients"]) > 10
    wrong = {name: value for name, value in result["gradients"].items() if not value < LIMIT[precision]}
    assert not wrong


@pytest.mark.parametrize("case", CPU_CASES)
def test_fast_model_on_a_cpu(case: str) -> None:
    processes, settings = CPU_CASES[case]
    check(compare(processes, acceleration=PLAIN_TORCH, **settings), settings.get("precision", "fp32"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("boundaries", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "biases"])
def test_fast_model_on_a_gpu(family: str, boundaries: bool, precision: str) -> None:
    """Compiled kernels, flash attention, flex_attention for windows and documents."""
    case = {"family": family, "precision": precision, "boundaries": boundaries}
    check(compare(1, gpu=True, acceleration=FAST, sequence=256, **case), precision)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["apex", "transformer_engine"])
@pytest.mark.parametrize("family", ["llama", "gemma", "biases"])
def test_backends_agree(backend: str, family: str) -> None:
    """The same weights through a checkpoint of the plain backend."""
    if importlib.util.find_spec({"apex": "amp_C"}.get(backend, backend)) is None:
        pytest.skip(f"{backend} is not installed")
    check(
        compare(1, gpu=True, acceleration={**FAST, "backend": backend}, family=family, precision="bf16"),
        "bf16",
    )


@pytest.mark.gpu
def test_fp8_is_close_to_bf16() -> None:
    """3 bits of mantissa: a relative error of some per cent in gradients; the loss moves less."""
    if importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("transformer_engine is not installed")
    acceleration = {**FAST, "backend": "transformer_engine", "fp8_recipe": "tensorwise"}
    result = compare(1, gpu=True, acceleration=acceleration, family="llama", precision="bf16")
    assert 0 < result["loss"] < 2e-2
    assert max(result["gradients"].values()) < 0.3
