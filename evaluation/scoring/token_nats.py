"""Negative log-likelihood of given tokens from hidden states, without the logits of a whole batch.

The output matrix is taken a block of rows at a time and the log partition function summed as it goes (the
online softmax of arXiv 1805.02867), so that a block's logits stay in the processor's cache and are never
written to memory: a float32 copy and a log-softmax of [tokens, vocabulary] took longer than their product.

Shapes: n tokens, h hidden size, v vocabulary rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CPU_TOKENS, _CPU_ROWS = 512, 1024
"""A block of logits on a CPU: 2 MB, which the second-level cache of a core holds."""


def token_nats(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, block_bytes: int
) -> torch.Tensor:
    """Nats of each target token.

    Args:
        hidden: what the output matrix is applied to [n, h].
        weight: output matrix [v, h], in the dtype of ``hidden``.
        targets: token ids [n].
        block_bytes: memory for a block of logits on a GPU; a CPU has its own measure.

    Returns:
        [n] in float32; logits are rounded to the dtype of the weights and everything after is float32.
    """
    import torch

    rows = _CPU_ROWS if hidden.device.type == "cpu" else weight.shape[0]
    tokens = _CPU_TOKENS if hidden.device.type == "cpu" else max(1, block_bytes // (12 * rows))
    parts = [
        _block_nats(part, weight, wanted, rows)
        for part, wanted in zip(hidden.split(tokens), targets.split(tokens), strict=True)
    ]
    return torch.cat(parts)


def _block_nats(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rows: int) -> torch.Tensor:
    import torch

    count = hidden.shape[0]
    largest = hidden.new_full((count,), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(largest)  # of exp(logit - largest)
    wanted = torch.zeros_like(largest)
    for first in range(0, weight.shape[0], rows):
        logits = (hidden @ weight[first : first + rows].t()).float()  # [n, rows]
        column = targets - first
        inside = (column >= 0) & (column < logits.shape[1])
        found = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        wanted = torch.where(inside, found, wanted)
        before, largest = largest, torch.maximum(largest, logits.amax(dim=1))
        total *= (before - largest).exp_()
        total += logits.sub_(largest[:, None]).exp_().sum(dim=1)
    return total.log_() + largest - wanted
