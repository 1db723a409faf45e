"""Environment variables of a rank. CUDA, cuBLAS and NCCL read them once, when they start."""

from __future__ import annotations

import os

from tsugiki.experiment.errors import EnvironmentError_

# torch reads the first of these that is there; the second is its older name.
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ALLOCATOR = "expandable_segments:True"
"""Segments that grow: without them, memory is lost between blocks of unlike sizes."""
_CONNECTIONS = "1"
"""One queue between CPU and GPU keeps Megatron's overlapped tensor-parallel collectives in order."""

# What may stand there already, first what is set: the algorithms of Megatron-LM's own deterministic mode, and the two
# workspaces of NVIDIA's documentation (cuBLAS, "Results Reproducibility").
_DETERMINISTIC = {
    "NCCL_ALGO": ("Ring", "Tree", "CollnetDirect", "CollnetChain", "^NVLS"),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
}


def set_variables(*, deterministic: bool) -> None:
    """Set what a rank of a training needs where nobody has set it; in the rank's own process, before CUDA starts.

    Args:
        deterministic: as `train.deterministic`.

    Raises:
        EnvironmentError_: a variable is set to what cannot be deterministic.
    """
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = _ALLOCATOR
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", _CONNECTIONS)
    if not deterministic:
        return
    for name, allowed in _DETERMINISTIC.items():
        got = os.environ.setdefault(name, allowed[0])
        if got not in allowed:
            raise EnvironmentError_(
                "train.deterministic cannot be kept with this environment variable",
                where=name,
                got=got,
                expected=f"unset, or one of {', '.join(allowed)}",
                fix=f"unset {name} in the site's setup, or set train.deterministic: false",
            )
