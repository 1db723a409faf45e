"""Output layer and cross entropy in one, without logits in fp32 and without padded vocabulary rows.

Hidden states are multiplied with the output matrix in chunks of tokens, and the products stay in the
model's dtype: 2 bytes for each token and vocabulary row where the plain path holds 10 (logits in bf16 and
fp32, exponentials). Where even those would be too much they are not kept but multiplied again in the
backward pass, for a third more work in the output layer.

torch's `linear_cross_entropy` (2.13) does the like on one GPU; it knows neither a vocabulary divided over
ranks nor a z-loss nor padded rows, and rounds the weight's gradient before Megatron adds it up.

Shapes: n tokens, h hidden size, v vocabulary rows of this rank that are not padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki.pretrain.model.kernels import accumulate_weight_gradient, compiled

_CHUNK_BYTES = 1 << 28
"""Logits of one chunk: enough to fill a GPU (3,000 tokens of a vocabulary of 43,000)."""
_KEEP_BYTES = 1 << 30
"""Logits of a micro batch that are kept for the backward pass, at most."""
_CHUNK_MULTIPLE = 128


def statistics(logits: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per token: the largest logit, the sum of exp(logit - largest), and the logit of a column.

    Args:
        logits: [n, v].
        column: [n]; -1 where the label belongs to another rank, whose logit then counts as 0.
    """
    local = logits.float()
    largest = local.amax(dim=-1)
    total = (local - largest[:, None]).exp().sum(dim=-1)
    target = logits.gather(-1, column.clamp(min=0)[:, None])[:, 0].float()
    return largest, total, torch.where(column < 0, 0.0, target)


def logit_gradient(
    logits: Tensor, log_partition: Tensor, spread: Tensor, target: Tensor, column: Tensor
) -> Tensor:
    """spread * softmax(logits), less `target` in the label's column; [n, v] in the logits' dtype."""
    gradient = (logits.float() - log_partition[:, None]).exp() * spread[:, None]
    columns = torch.arange(logits.shape[1], device=logits.device)
    hit = columns[None, :] == column[:, None]
    return torch.where(hit, gradient - target[:, None], gradient).to(logits.dtype)


def chunk_tokens(tokens: int, rows: int, element_bytes: int) -> int:
    """Tokens of a chunk: as few equal chunks as keep the logits of one under 256 MiB."""
    chunks = -(-tokens * rows * element_bytes // _CHUNK_BYTES)
    each = -(-tokens // chunks)
    return min(-(-each // _CHUNK_MULTIPLE) * _CHUNK_MULTIPLE, tokens)


@dataclass(frozen=True)
class _Plan:
    """How a loss is computed: rows that are not padding, tokens of a chunk, and so on."""

    rows: int
    chunk: int
    keep: bool
    z_loss: float
    group: Any
    compiled: bool
    accumulate: bool

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return compiled(function) if self.compiled else function


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, parameter: Tensor, column: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        weight = parameter[: plan.rows]
        measure = plan.function(statistics)
        parts, kept = [], []
        for start in range(0, hidden.shape[0], plan.chunk):
            logits = hidden[start : start + plan.chunk] @ weight.t()
            parts.append(measure(logits, column[start : start + plan.chunk]))
            if plan.keep:
                kept.append(logits)
            del logits
        largest, total, target = (torch.cat(part) for part in zip(*parts, strict=True))
        if plan.group is not None and plan.group.size() > 1:
            # Once for all chunks: until here every rank's sum is relative to its own largest logit.
            own = largest.clone()
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=plan.group)
            sums = torch.stack([total * (own - largest).exp(), target])
            torch.distributed.all_reduce(sums, group=plan.group)
            total, target = sums.unbind(0)
        log_partition = total.log() + largest
        entropy = log_partition - target
        ctx.save_for_backward(hidden, column, log_partition, *kept)
        ctx.parameter, ctx.plan = parameter, plan
        ctx.mark_non_differentiable(entropy)
        objective = entropy + plan.z_loss * log_partition.square() if plan.z_loss else entropy.clone()
        return objective, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, column, log_partition, *kept = ctx.saved_tensors
        parameter, plan = ctx.parameter, ctx.plan
        weight = parameter[: plan.rows]
        gradient = gradients[0].float()
        spread = gradient * (1 + 2 * plan.z_loss * log_partition) if plan.z_loss else gradient
        derive = plan.function(logit_gradient)
        sink: Tensor | None = None
        if ctx.needs_input_grad[1]:
            sink = (
                parameter.main_grad[: plan.rows]
                if plan.accumulate
                else torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            )
        hidden_gradient = torch.empty_like(hidden)
        for number, start in enumerate(range(0, hidden.shape[0], plan.chunk)):
            part = slice(start, start + plan.chunk)
            logits = kept[number] if kept else hidden[part] @ weight.t()
            result = derive(logits, log_partition[part], spread[part], gradient[part], column[part])
            del logits
            torch.mm(result, weight, out=hidden_gradient[part])
            if sink is not None:
                accumulate_weight_gradient(hidden[part], result, sink)
        if sink is None:
            return hidden_gradient, None, None, None
        return hidden_gradient, _weight_gradient(parameter, sink, plan), None, None


def _weight_gradient(parameter: Tensor, sink: Tensor, plan: _Plan) -> Tensor:
    """What autograd gets: the gradient, or a stand-in for one that is in Megatron's buffer already.

    Megatron's hooks run when autograd delivers a gradient, and skip it when `grad_added_to_main_grad` is
    set, except for an embedding that is also the output matrix (`zero_out_wgrad`), which autograd adds up.
    """
    if not plan.accumulate:
        whole = torch.zeros_like(parameter)
        whole[: plan.rows] = sink
        return whole
    parameter.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    zero = getattr(parameter, "zero_out_wgrad", False)
    return torch.zeros_like(parameter) if zero else torch.empty_like(parameter)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    first: int,
    vocabulary_size: int,
    z_loss: float = 0.0,
    group: Any = None,
    compile: bool = False,
    accumulate: bool = False,
    chunk: int | None = None,
    keep: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of every token; the same function as `vocabulary_parallel_loss` of the logits.

    Args:
        hidden: [n, h].
        weight: this rank's rows of the output matrix, padding included, [rows, h].
        labels: token ids [n], below vocabulary_size.
        first: vocabulary row of the rank's first row.
        vocabulary_size: true rows; what lies behind them has no part in loss or gradient.
        z_loss: coefficient of the squared log partition function.
        group: tensor-parallel group, None for a single rank. The gradient of `hidden` is this rank's
            share and has yet to be summed over the group.
        compile: run what is not a matrix product through torch's compiler.
        accumulate: add the weight's gradient to `weight.main_grad`, as Megatron's linear layers do.
        chunk: tokens multiplied at a time; None = as many as give logits of 256 MiB.
        keep: hold the logits for the backward pass; None = if they take at most 1 GiB.

    Returns:
        What to minimise (cross entropy + z-loss) and the cross entropy alone (no gradient), both [n] in
        fp32, in nats.
    """
    rows = min(weight.shape[0], vocabulary_size - first)
    tokens, bytes_ = hidden.shape[0], hidden.element_size()
    plan = _Plan(
        rows=rows,
        chunk=chunk or chunk_tokens(tokens, rows, bytes_),
        keep=tokens * rows * bytes_ <= _KEEP_BYTES if keep is None else keep,
        z_loss=z_loss,
        group=group,
        compiled=compile,
        accumulate=accumulate and hasattr(weight, "main_grad"),
    )
    elsewhere = (labels < first) | (labels >= first + rows)
    column = (labels - first).masked_fill(elsewhere, -1)
    result: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(hidden, weight, column, plan)  # type: ignore[no-untyped-call]
    return result
