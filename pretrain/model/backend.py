"""Which layers and kernels a run is made of.

| backend | norm | linear layers | attention | weight gradients | optimizer |
|---|---|---|---|---|---|
| reference | torch | Megatron | SDPA | torch | torch AdamW |
| a CPU in fp32 | [cpu_kernels.py](cpu_kernels.py) | Megatron | SDPA | torch, into the buffer | torch fused AdamW |
| torch | compiled | Megatron | SDPA (flash), flex_attention | torch, into the buffer | torch fused AdamW |
| apex | apex | Megatron | as above | apex, into the buffer | apex FusedAdam |
| transformer_engine | in the linear layers | its own, bf16 or fp8 | as above | its own, likewise | its own |

All read and write the same checkpoints and compute the same function. Attention is the same everywhere,
because sliding windows, document boundaries and context parallelism are.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import torch

from tsugiki.experiment.accelerators import (
    INSTALL,
    Backend,
    best_backend,
    has_apex_gradient_accumulation,
    has_nvidia_apex,
    has_transformer_engine,
)
from tsugiki.experiment.errors import ConfigError
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu

Precision = Literal["fp32", "bf16", "fp8"]


@dataclass(frozen=True)
class Acceleration:
    """What is fast in a run. The default is the plain path, which a CPU takes in half precision.

    Attributes:
        backend: what norm and linear layers are made of.
        compile: norm, rotation, activation and loss through torch's compiler.
        fused_loss: output layer and loss in one.
        accumulate: weight gradients are added to Megatron's buffers by the matrix product.
        attention: `plain` repeats keys and values for grouped queries; `fast` does not, and takes
            flex_attention for windows and document boundaries.
        fp8_recipe: scaling of fp8 products; None = bf16 or fp32.
        deterministic: only kernels that give the same bits every time.
        cpu_kernels: norm, SwiGLU and rotation of `cpu_kernels.py`, the fused loss of `blocked_loss.py`.
    """

    backend: Backend = "torch"
    compile: bool = False
    fused_loss: bool = False
    accumulate: bool = False
    attention: Literal["plain", "fast"] = "plain"
    fp8_recipe: str | None = None
    deterministic: bool = False
    cpu_kernels: bool = False


REFERENCE = Acceleration()
CPU = Acceleration(fused_loss=True, accumulate=True, cpu_kernels=True)
"""In fp32; in half precision products are faster than their sums in fp32."""


def resolve(
    backend: Literal["auto"] | Backend,
    *,
    precision: Precision,
    gpu: bool,
    compile: bool = True,
    fp8_recipe: str = "tensorwise",
    deterministic: bool = False,
) -> Acceleration:
    """What a run uses.

    Args:
        backend: `auto` takes the best one installed.
        precision: fp8 needs transformer-engine.
        gpu: whether there is a CUDA device.
        compile: let torch's compiler make the small kernels.
        fp8_recipe: used with precision fp8.
        deterministic: `auto` takes torch, which alone refuses what is not; the others have kernels of their own.

    Raises:
        ConfigError: a backend that is not installed or cannot run here, or fp8 without transformer-engine.
    """
    if not gpu:
        if backend not in ("auto", "torch"):
            raise ConfigError(
                "this backend needs a GPU", where="train.backend", got=backend, fix="set train.backend: auto"
            )
        if precision == "fp8":
            raise ConfigError(
                "fp8 needs transformer-engine on a GPU",
                where="train.precision",
                got="fp8 on a CPU",
                fix="set train.precision: bf16",
            )
        plain = CPU if precision == "fp32" else REFERENCE
        return replace(plain, deterministic=True) if deterministic else plain
    there = {"torch": True, "apex": has_nvidia_apex(), "transformer_engine": has_transformer_engine()}
    best: Backend = "torch" if deterministic else best_backend()
    chosen: Backend = best if backend == "auto" else backend
    if not there[chosen]:
        raise ConfigError(
            "this backend is not installed",
            where="train.backend",
            got=backend,
            expected=" or ".join(["auto", *(name for name, found in there.items() if found)]),
            fix=INSTALL,
        )
    if precision == "fp8" and chosen != "transformer_engine":
        raise ConfigError(
            "fp8 needs transformer-engine layers",
            where="train.precision",
            got=f"fp8 with backend {chosen}",
            expected="backend transformer_engine, which "
            + ("is installed" if there["transformer_engine"] else "is not installed"),
            fix="set train.precision: bf16, or install it: " + INSTALL,
        )
    return Acceleration(
        backend=chosen,
        compile=compile,
        fused_loss=True,
        accumulate=True,
        attention="fast",
        fp8_recipe=fp8_recipe if precision == "fp8" else None,
        deterministic=deterministic,
    )


def acceleration_of(config: TrainConfig) -> Acceleration:
    """What the train section asks for on this machine; raises as :func:`resolve`."""
    return resolve(
        config.backend,
        precision=config.precision,
        gpu=has_gpu(),
        compile=config.compile,
        fp8_recipe=config.fp8_recipe,
        deterministic=config.deterministic,
    )


def prepare_megatron(acceleration: Acceleration) -> None:
    """Give Megatron the optimizer and the gradient accumulation of the backend.

    It decides both by what can be imported, whatever the layers are made of.
    """
    import megatron.core.optimizer as optimizers
    import megatron.core.optimizer.distrib_optimizer as distributed
    import megatron.core.tensor_parallel.layers as layers
    import megatron.core.transformer.mlp as mlp
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    from tsugiki.pretrain.model.cpu_kernels import swiglu

    adam, is_torch = _adam(acceleration.backend)
    optimizers.Adam = adam
    optimizers.USING_PYTORCH_OPTIMIZER = is_torch
    # These say where Adam's step is kept, and which class may be divided over processes.
    distributed.Adam = adam
    distributed.HAVE_APEX_OR_TE = not is_torch
    distributed.USING_TE_OPTIMIZER = acceleration.backend == "transformer_engine"
    distributed.USING_APEX_OPTIMIZER = not is_torch and not distributed.USING_TE_OPTIMIZER
    if acceleration.accumulate:
        layers.fused_weight_gradient_mlp_cuda = _gradient_accumulation(acceleration.backend)
        layers._grad_accum_fusion_available = True
    mlp.bias_swiglu_impl = swiglu if acceleration.cpu_kernels else bias_swiglu_impl


def _adam(backend: Backend) -> tuple[Any, bool]:
    """The optimizer class, and whether it is torch's."""
    if backend == "transformer_engine":
        from transformer_engine.pytorch.optimizers import FusedAdam

        return FusedAdam, False
    if backend == "apex":
        from apex.optimizers import FusedAdam

        return FusedAdam, False
    return torch.optim.AdamW, True


def _gradient_accumulation(backend: Backend) -> ModuleType | type:
    if backend == "apex" and has_apex_gradient_accumulation():
        return importlib.import_module("fused_weight_gradient_mlp_cuda")
    from tsugiki.pretrain.model.kernels import TorchGradientAccumulation

    return TorchGradientAccumulation
