"""What this machine has: packages, accelerator tier, commands; and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import Literal

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
            checks.append(Check(name, "missing", "not installed: `pip install -e .` in the checkout"))
    return checks


def _commands() -> list[Check]:
    checks = []
    for name, use in _COMMANDS.items():
        path = shutil.which(name)
        checks.append(Check(name, "ok" if path else "absent", path or f"not found; {use}"))
    return checks


def accelerator() -> list[Check]:
    """Device and acceleration tier of ``pretrain/``, and which optional accelerators are installed."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return [
            Check("device", "ok", "CPU (gloo): right for tests and the quick start; no CUDA device found"),
            Check("tier", "ok", "torch only"),
        ]
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    checks = [
        Check(
            "device",
            "ok",
            f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, CUDA {torch.version.cuda}",
        )
    ]
    checks.append(Check("tier", "ok", "torch only: layers of transformer-engine and apex are not used yet"))
    engine = importlib.util.find_spec("transformer_engine") is not None
    how = "`slurm/environment.sh` builds it from NVIDIA's source"
    for name, there in (("transformer-engine", engine), ("apex", has_nvidia_apex())):
        checks.append(Check(name, "ok" if there else "absent", "installed" if there else f"optional; {how}"))
    return checks


def has_nvidia_apex() -> bool:
    """Whether the ``apex`` that is importable is NVIDIA's: PyPI has an unrelated project of that name."""
    return importlib.util.find_spec("apex") is not None and importlib.util.find_spec("amp_C") is not None
