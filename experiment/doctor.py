"""What this machine has: packages, accelerator backend, commands; and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import Literal

from tsugiki.experiment import accelerators

State = Literal["ok", "absent", "missing"]


@dataclass(frozen=True)
class Check:
    """One line of the report: ``missing`` prevents work, ``absent`` is optional."""

    name: str
    state: State
    detail: str


_REQUIRED = (
    "torch", "megatron-core", "transformers", "sentencepiece", "datatrove", "mlflow", "safetensors", "psutil",
    "pycld2",
)  # fmt: skip
_BACKENDS: dict[accelerators.Backend, str] = {
    "torch": "torch: flash attention, compiled norm, activation and loss, gradients added in the product",
    "apex": "apex: its norms, gradient accumulation and optimizer; the rest as torch",
    "transformer_engine": "transformer_engine: its linear layers (bf16, fp8), optimizer; the rest as torch",
}
_COMMANDS = {
    "sbatch": "only for `tsugiki submit`: run it on a login node of the cluster",
    "apt-get": "only for the quick start's text; otherwise point corpus.sources at your own files",
}


def examine() -> list[Check]:
    """All checks, cheap ones first."""
    return [_python(), *_packages(), *_commands(), *accelerator()]


def _python() -> Check:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Check(
        "python", "ok" if supported else "missing",
        platform.python_version() + ("" if supported else ": needs Python 3.11 or 3.12"),
    )  # fmt: skip


def _packages() -> list[Check]:
    checks = []
    for name in _REQUIRED:
        try:
            checks.append(Check(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(
                Check(
                    name,
                    "missing",
                    f"not installed: `pip install {name}`, or install Tsugiki again, with what it needs",
                )
            )
    return checks


def _commands() -> list[Check]:
    checks = []
    for name, use in _COMMANDS.items():
        path = shutil.which(name)
        checks.append(Check(name, "ok" if path else "absent", path or f"not found; {use}"))
    return checks


def accelerator() -> list[Check]:
    """Device, the backend that ``train.backend: auto`` takes on it, and which accelerators are installed."""
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        count, cuda = torch.cuda.device_count(), torch.version.cuda
        device = f"{count} x {', '.join(sorted(names))}, CUDA {cuda}"
        backend = _BACKENDS[accelerators.best_backend()]
    else:
        device = "CPU (gloo): right for tests and the quick start; no CUDA device found"
        backend = "plain torch, as always on a CPU"
    return [Check("device", "ok", device), Check("backend", "ok", backend), *_optional()]


def _optional() -> list[Check]:
    """Accelerators that training uses on a GPU when they are there."""
    checks = []
    for name, there, use in (
        ("transformer-engine", accelerators.has_transformer_engine(), "faster linear layers, fp8"),
        ("apex", accelerators.has_nvidia_apex(), "its norms, gradient accumulation and optimizer"),
    ):
        detail = f"installed: {use}" if there else f"optional on a GPU: {use}; {accelerators.INSTALL}"
        checks.append(Check(name, "ok" if there else "absent", detail))
    if accelerators.has_nvidia_apex() and not accelerators.has_apex_gradient_accumulation():
        how = "APEX_CUDA_EXT=1 builds it; torch's is used"
        checks.append(Check("apex", "absent", f"installed without fused_weight_gradient_mlp_cuda: {how}"))
    return checks
