"""What the fast paths of the model share: compilation, and gradients added up in fp32 as they are made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def compiled(function: Any) -> Callable[..., Any]:
    """The function through torch's compiler, once for all layers that use it.

    Only whole small functions are compiled (norm, rotation, loss), never a layer: Megatron's linear
    layers write gradients into buffers of their own, which a graph of the whole layer would break at.
    """
    return torch.compile(function)


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """[..., h] to [..., h] in the dtype of the input."""
    return F.rms_norm(hidden, weight.shape, weight.to(hidden.dtype), epsilon)


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate [s, b, heads, d], the two halves of d as pairs (the layout of Hugging Face)."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def rotate_both(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [s, b, n, d] and keys [s, b, g, d], rotated."""
    return rotate(query, cosine, sine), rotate(key, cosine, sine)


def accumulate_weight_gradient(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
    """total += gradient^T inputs, without rounding the product to the model's dtype.

    On a GPU the matrix product adds to the buffer itself: 8 bytes of traffic for each weight (read and
    write in fp32) instead of 12 (write and read the product, then the same), and no second kernel.

    Args:
        inputs: [n, in].
        gradient: [n, out].
        total: [out, in], fp32 or the dtype of the others.
    """
    if total.dtype == inputs.dtype:
        total.addmm_(gradient.t(), inputs)
    elif inputs.is_cuda:
        torch.addmm(total, gradient.t(), inputs, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(gradient.t().to(total.dtype), inputs.to(total.dtype))


class TorchGradientAccumulation:
    """torch's own matrix product under the names of apex's `fused_weight_gradient_mlp_cuda`.

    Megatron's linear layers call that module when `gradient_accumulation_fusion` is on.
    """

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
        """Add to an fp32 buffer; inputs [n, in], gradient [n, out], total [out, in]."""
        accumulate_weight_gradient(inputs, gradient, total)

    @staticmethod
    def wgrad_gemm_accum_fp16(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
        """Add to a buffer in the model's dtype."""
        accumulate_weight_gradient(inputs, gradient, total)
