"""The environment variables of a rank: what is set, what of the user's is kept, what cannot be."""

import os

import pytest

from tsugiki.experiment.errors import EnvironmentError_
from tsugiki.pretrain.runtime.environment import set_variables

EVERY_RANK = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
DETERMINISTIC = {"NCCL_ALGO": "Ring", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
KNOWN = (*EVERY_RANK, *DETERMINISTIC, "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize(
    ("given", "deterministic", "expected"),
    [
        ({}, False, EVERY_RANK),
        ({}, True, EVERY_RANK | DETERMINISTIC),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "CUDA_DEVICE_MAX_CONNECTIONS": "8"},
            False,
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "CUDA_DEVICE_MAX_CONNECTIONS": "8"},
        ),
        ({"NCCL_ALGO": "NVLS"}, False, {**EVERY_RANK, "NCCL_ALGO": "NVLS"}),
        ({"NCCL_ALGO": "Tree"}, True, EVERY_RANK | DETERMINISTIC | {"NCCL_ALGO": "Tree"}),
    ],
)
def test_what_nobody_has_set_is_set(
    given: dict[str, str], deterministic: bool, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    set_variables(deterministic=deterministic)
    assert {name: os.environ[name] for name in KNOWN if name in os.environ} == expected


@pytest.mark.parametrize(("name", "value"), [("NCCL_ALGO", "NVLS"), ("CUBLAS_WORKSPACE_CONFIG", ":0:0")])
def test_a_variable_that_cannot_be_deterministic_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {name: value})
    with pytest.raises(EnvironmentError_, match="cannot be kept") as caught:
        set_variables(deterministic=True)
    assert (caught.value.where, caught.value.got) == (name, value)
