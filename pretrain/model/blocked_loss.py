"""Output layer and cross entropy by blocks of logits that stay in a CPU's cache.

The plain path goes over all logits eleven times (product, maximum, subtraction, exponential, sum, scaling, two products
of the backward pass); with a small hidden size that takes longer than the arithmetic. Here a block of tokens times rows
of the vocabulary is multiplied and reduced while it is in the cache, written once, and read once in the backward pass.

Shapes: n tokens, h hidden size, v vocabulary rows of this rank that are not padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki.pretrain.model.cpu_kernels import added

_TOKENS, _ROWS = 1024, 512
"""Of a block: 2 MiB in fp32, a second-level cache."""


@dataclass(frozen=True)
class _Plan:
    """Rows that are not padding, and how the loss is computed."""

    rows: int
    z_loss: float
    group: Any
    accumulate: bool
    keep: bool


class _Buffers:
    """Memory for logits that goes from step to step: new pages would take as long as the product itself."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, count: int) -> Tensor:
        """As many numbers, fp32; one that was given back, where its size fits."""
        while self._free:
            buffer = self._free.pop()
            if buffer.numel() == count:
                return buffer
        return torch.empty(count, dtype=torch.float32)

    def give(self, buffer: Tensor) -> None:
        """Another one may have it."""
        self._free.append(buffer)


_buffers = _Buffers()


def _blocks(tokens: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Tokens and rows of each block; the rows are in the outer loop, so that they and their gradient stay cached."""
    for row in range(0, rows, _ROWS):
        for token in range(0, tokens, _TOKENS):
            yield slice(token, min(token + _TOKENS, tokens)), slice(row, min(row + _ROWS, rows))


def _views(buffer: Tensor, tokens: int, plan: _Plan) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Each block and its place in the buffer, one behind the other; all the same place where none is kept."""
    begin = 0
    for token, row in _blocks(tokens, plan.rows):
        shape = (token.stop - token.start, row.stop - row.start)
        yield (token, row), buffer[begin : begin + shape[0] * shape[1]].view(shape)
        begin += shape[0] * shape[1] if plan.keep else 0


class _BlockedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parameter: Tensor, column: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden.shape[0]
        largest = hidden.new_full((tokens,), -torch.inf)
        total, target = hidden.new_zeros(tokens), hidden.new_zeros(tokens)
        block = min(_TOKENS, tokens) * min(_ROWS, plan.rows)
        scratch = hidden.new_empty(block)
        buffer = _buffers.take(tokens * plan.rows) if plan.keep else hidden.new_empty(block)
        for (token, row), logits in _views(buffer, tokens, plan):
            torch.mm(hidden[token], parameter[row].t(), out=logits)
            before = largest[token]
            now = torch.maximum(before, logits.amax(dim=-1))
            part = torch.sub(logits, now[:, None], out=scratch[: logits.numel()].view_as(logits))
            sums = part.exp_().sum(dim=-1)
            total[token] = total[token] * (before - now).exp_() + sums
            largest[token] = now
            local = column[token] - row.start
            inside = (local >= 0) & (local < logits.shape[1])
            found = logits.gather(-1, local.masked_fill(~inside, 0)[:, None])[:, 0]
            target[token] += found.masked_fill_(~inside, 0.0)
        if plan.group is not None and plan.group.size() > 1:
            own = largest.clone()  # every rank's sum is relative to its own largest logit
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=plan.group)
            both = torch.stack([total * (own - largest).exp(), target])
            torch.distributed.all_reduce(both, group=plan.group)
            total, target = both.unbind(0)
        log_partition = total.log() + largest
        entropy = total.log() + (largest - target)  # rounded once less than log_partition - target
        ctx.save_for_backward(hidden, column, largest, total, log_partition)
        ctx.parameter, ctx.plan, ctx.buffer = parameter, plan, buffer
        ctx.mark_non_differentiable(entropy)
        objective = entropy + plan.z_loss * log_partition.square() if plan.z_loss else entropy.clone()
        return objective, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, column, largest, total, log_partition = ctx.saved_tensors
        parameter, plan = ctx.parameter, ctx.plan
        gradient = gradients[0]
        spread = gradient * (1 + 2 * plan.z_loss * log_partition) if plan.z_loss else gradient
        scale = spread / total
        sink: Tensor | None = None
        if ctx.needs_input_grad[1]:
            sink = parameter.main_grad if plan.accumulate else torch.zeros_like(parameter)
        hidden_gradient = torch.zeros_like(hidden)
        for (token, row), logits in _views(ctx.buffer, hidden.shape[0], plan):
            # In place: this graph is walked once. spread * softmax(logits), less `gradient` in the label's column.
            result = logits.sub_(largest[token, None]).exp_().mul_(scale[token, None])
            local = column[token] - row.start
            inside = (local >= 0) & (local < result.shape[1])
            less = gradient[token].masked_fill(~inside, 0.0)
            result.scatter_add_(-1, local.masked_fill(~inside, 0)[:, None], -less[:, None])
            hidden_gradient[token].addmm_(result, parameter[row])
            if sink is not None:
                sink[row].addmm_(result.t(), hidden[token])
        _buffers.give(ctx.buffer)
        ctx.buffer = None
        if sink is None or not plan.accumulate:
            return hidden_gradient, sink, None, None
        return hidden_gradient, added(parameter), None, None


def blocked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    first: int,
    vocabulary_size: int,
    z_loss: float = 0.0,
    group: Any = None,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss of every token in fp32; arguments and results as in `fused_loss.linear_cross_entropy`."""
    plan = _Plan(
        rows=min(weight.shape[0], vocabulary_size - first),
        z_loss=z_loss,
        group=group,
        accumulate=accumulate and hasattr(weight, "main_grad"),
        keep=torch.is_grad_enabled(),
    )
    result: tuple[Tensor, Tensor] = _BlockedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels - first, plan
    )
    return result
