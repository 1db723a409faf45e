"""Merging one tensor of several models, in fp32.

With d_i = model_i - base and weights w_i:

    linear            sum w_i model_i / sum w_i
    task_arithmetic   base + sum w_i d_i                                                        arXiv 2212.04089
    dare_linear       the same with a random share of each d_i, divided by that share           arXiv 2311.03099
    ties              of each d_i the largest numbers; those with the sign of sum w_i d_i count,
                      divided by the sum of their weights                                       arXiv 2306.01708
    dare_ties         a random share as in dare_linear, signs as in ties, not divided

``normalise`` divides by the sum of weights or not, whatever the method. As mergekit's, but that its DARE keeps the sum
of absolute numbers where the paper divides by the share that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Method = Literal["linear", "task_arithmetic", "dare_linear", "ties", "dare_ties"]
NORMALISED = ("linear", "ties")
"""Methods that divide by the sum of weights unless they are told not to."""


def largest(delta: Tensor, density: float) -> Tensor:
    """The share of the numbers with the largest magnitude, at least one; zero elsewhere."""
    if density >= 1:
        return delta
    kept = max(1, int(density * delta.numel()))
    places = delta.abs().flatten().topk(kept, sorted=False).indices
    mask = torch.zeros(delta.numel(), dtype=torch.bool).index_fill_(0, places, True)
    return delta * mask.view_as(delta)


def dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """A random share of the numbers divided by that share; zero elsewhere."""
    if density >= 1:
        return delta
    return delta * (torch.rand(delta.shape, generator=generator) < density) / density


def merged(
    method: Method,
    base: Tensor | None,
    models: Sequence[Tensor],
    weights: Sequence[float],
    *,
    normalise: bool,
    densities: Sequence[float] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """What is added to the tensor that the result is made of, or for `linear` the result.

    Args:
        method: see the module.
        base: fp32; None for `linear`.
        models: fp32, of the same shape.
        weights: of the models.
        normalise: divide by the sum of the weights, of `ties` and `dare_ties` of those that count.
        densities: of the models; shares of numbers that are kept.
        generator: of `dare_*`.
    """
    factors = torch.tensor(weights, dtype=torch.float32).view(-1, *(1 for _ in models[0].shape))
    if base is None:
        return _divided(_sum(models, factors), factors.sum(dim=0), normalise)
    deltas = [model - base for model in models]
    if method == "ties":
        deltas = [largest(delta, density) for delta, density in zip(deltas, densities, strict=True)]
    elif method.startswith("dare") and generator is not None:
        deltas = [
            dropped(delta, density, generator) for delta, density in zip(deltas, densities, strict=True)
        ]
    if not method.endswith("ties"):
        return _divided(_sum(deltas, factors), factors.sum(dim=0), normalise)
    weighted = torch.stack(deltas) * factors
    positive = weighted.sum(dim=0) >= 0
    counts = torch.where(positive, weighted > 0, weighted < 0)
    return _divided((weighted * counts).sum(dim=0), (factors * counts).sum(dim=0), normalise)


def _sum(tensors: Sequence[Tensor], factors: Tensor) -> Tensor:
    total = tensors[0] * factors[0]
    for tensor, factor in zip(tensors[1:], factors[1:], strict=True):
        total += tensor * factor
    return total


def _divided(total: Tensor, weight: Tensor, normalise: bool) -> Tensor:
    if not normalise:
        return total
    return total / torch.where(weight.abs() < 1e-8, torch.ones_like(weight), weight)
