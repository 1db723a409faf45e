"""Cross entropy over a vocabulary divided among tensor-parallel ranks.

Shapes: s sequence, b micro batch, v vocabulary rows of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _VocabularyParallelLoss(torch.autograd.Function):
    """Cross entropy plus z-loss; padded rows of the vocabulary take no part."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, first: int, size: int, z_loss: float, group: Any
    ) -> tuple[Tensor, Tensor]:
        local = logits if logits.dtype == torch.float32 else logits.float()
        rows = local.shape[-1]
        if first + rows > size:
            local[..., max(size - first, 0) :] = -torch.inf
        parallel = group is not None and group.size() > 1
        maximum = local.amax(dim=-1)  # [s, b]; max, which looks for the place too, takes three times as long
        if parallel:
            torch.distributed.all_reduce(maximum, op=torch.distributed.ReduceOp.MAX, group=group)
        # The logits are the product of the output layer, whose backward does not need them: reused.
        local.sub_(maximum[..., None])
        elsewhere = (labels < first) | (labels >= first + rows)
        index = (labels - first).masked_fill(elsewhere, 0)
        target = local.gather(-1, index[..., None])[..., 0].masked_fill(elsewhere, 0.0)
        local.exp_()
        sums = torch.stack([local.sum(dim=-1), target])  # [2, s, b]
        if parallel:
            torch.distributed.all_reduce(sums, group=group)
        total, target = sums.unbind(0)
        log_total = total.log()
        entropy = log_total - target
        log_partition = log_total + maximum
        ctx.save_for_backward(local, total, log_partition, index, elsewhere)
        ctx.z_loss = z_loss
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(entropy)
        objective = entropy + z_loss * log_partition.square() if z_loss else entropy.clone()
        return objective, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        gradient = gradients[0]
        exponentials, total, log_partition, index, elsewhere = ctx.saved_tensors
        weight = gradient * (1 + 2 * ctx.z_loss * log_partition) if ctx.z_loss else gradient
        # In place: this graph is walked once.
        result = exponentials.mul_((weight / total)[..., None])
        result.scatter_add_(-1, index[..., None], -gradient.masked_fill(elsewhere, 0.0)[..., None])
        return result.to(ctx.dtype), None, None, None, None, None


def vocabulary_parallel_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    first: int,
    vocabulary_size: int,
    z_loss: float = 0.0,
    group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Loss of every token.

    Args:
        logits: [s, b, v] of this rank; overwritten where they are fp32.
        labels: token ids [s, b], below vocabulary_size.
        first: vocabulary row of the rank's first logit.
        vocabulary_size: true rows; logits of rows from there on are ignored.
        z_loss: coefficient of the squared log partition function.
        group: tensor-parallel group, None for a single rank.

    Returns:
        What to minimise (cross entropy + z-loss) and the cross entropy alone (no gradient), both
        [s, b] in fp32, in nats.
    """
    result: tuple[Tensor, Tensor] = _VocabularyParallelLoss.apply(  # type: ignore[no-untyped-call]
        logits, labels, first, vocabulary_size, z_loss, group
    )
    return result
