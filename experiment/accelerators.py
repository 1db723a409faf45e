"""Which optional accelerators are installed, found without importing them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from tsugiki.experiment.config.shipped import checkout

Backend = Literal["torch", "apex", "transformer_engine"]
"""What the layers of training are made of; all compute the same function and read the same checkpoints."""
_SCRIPT = (
    "slurm/environment.sh" if checkout() else Path(__file__).resolve().parents[1] / "slurm" / "environment.sh"
)
INSTALL = f"`bash {_SCRIPT} DIR` builds it from NVIDIA's source (docs/gpu.md)"


def has_transformer_engine() -> bool:
    """Whether transformer-engine with its torch bindings is installed."""
    return _found("transformer_engine") and _found("transformer_engine_torch")


def has_nvidia_apex() -> bool:
    """Whether the ``apex`` that is installed is NVIDIA's with its CUDA extensions.

    PyPI has an unrelated project of that name; NVIDIA's built without its flags lacks `amp_C`.
    """
    return _found("apex") and _found("amp_C")


def has_apex_gradient_accumulation() -> bool:
    """Whether apex's matrix product that adds to a gradient buffer was built."""
    return _found("fused_weight_gradient_mlp_cuda")


def best_backend() -> Backend:
    """The fastest backend that is installed; meant for a machine with a GPU."""
    if has_transformer_engine():
        return "transformer_engine"
    return "apex" if has_nvidia_apex() else "torch"


def _found(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
