"""Norm, gated activation, rotation and embedding for training on a CPU in fp32, written for fewer passes over memory.

On a CPU these are bound by memory, and every intermediate result that autograd keeps is one more tensor to make,
write, and read again. Here each is one node of the graph that keeps its input alone, and computes the rest anew.

Shapes: h hidden size, f width of the feed-forward layer, s sequence, b micro batch, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean x^2 + eps)^(-1/2).

    For the gradient g of y and u = g w: dw = sum of g x r over tokens, dx = r (u - x r^2 mean(u x)).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        result = hidden * hidden
        inverse = result.mean(dim=-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        return torch.mul(hidden, inverse, out=result).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, inverse = ctx.saved_tensors
        normalised = hidden * inverse
        product = gradients[0] * normalised
        weight_gradient = product.flatten(0, -2).sum(dim=0)
        mean = (product @ weight).div_(weight.shape[0]).unsqueeze(-1)
        result = torch.mul(gradients[0], weight, out=product)
        return result.sub_(normalised.mul_(mean)).mul_(inverse), weight_gradient, None


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """[..., h] to [..., h], both fp32."""
    result: Tensor = _RMSNorm.apply(hidden, weight, epsilon)  # type: ignore[no-untyped-call]
    return result


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        to_gate, to_up = result.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate, out=to_up)
        to_up.mul_(gradients[0])
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=to_gate)
        return result


def swiglu(both: Tensor, bias: Tensor | None = None, *_: Any) -> Tensor:
    """silu(gate) * up from gate and up in one, [..., 2 f] to [..., f]; Megatron's `bias_swiglu_impl`."""
    result: Tensor = _SwiGLU.apply(both if bias is None else both + bias)  # type: ignore[no-untyped-call]
    return result


class _Rotate(torch.autograd.Function):
    """The gradient is rotated back: by the same cosines and the negative sines."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(heads, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradients[0], cosine, sine, -1), None, None


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    result = torch.empty(heads.shape, dtype=heads.dtype)
    to_first, to_second = result.chunk(2, dim=-1)
    torch.mul(first, cosine, out=to_first).addcmul_(second, sine, value=-direction)
    torch.mul(second, cosine, out=to_second).addcmul_(first, sine, value=direction)
    return result


def rotate_both(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`tsugiki.pretrain.model.kernels.rotate_both`."""
    return (
        _Rotate.apply(query, cosine, sine),  # type: ignore[no-untyped-call]
        _Rotate.apply(key, cosine, sine),  # type: ignore[no-untyped-call]
    )


def added(parameter: Tensor) -> Tensor | None:
    """What autograd gets for a gradient that is in Megatron's buffer already.

    Nothing, or zeros where a hook waits for it to reduce gradients early (`reduced_early`, set by `wrap_models`).
    Megatron still adds to the buffer what else autograd has for an embedding that is also the output matrix.
    """
    parameter.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return torch.zeros_like(parameter) if getattr(parameter, "reduced_early", False) else None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None]:
        (ids,) = ctx.saved_tensors
        weight = ctx.weight
        if not ctx.needs_input_grad[1]:
            return None, None
        accumulate = hasattr(weight, "main_grad")
        total = weight.main_grad if accumulate else torch.zeros_like(weight)
        total.index_add_(0, ids.flatten(), gradients[0].flatten(0, -2))
        if not accumulate:
            return None, total
        return None, added(weight)


def embedding(weight: Tensor, ids: Tensor) -> Tensor:
    """Rows of a weight [v, h] for ids [...]; their gradients are added to `weight.main_grad`, where there is one.

    torch makes a gradient as large as the weight for each batch, whatever part of the vocabulary is in it.
    """
    result: Tensor = _Embedding.apply(ids, weight)  # type: ignore[no-untyped-call]
    return result
