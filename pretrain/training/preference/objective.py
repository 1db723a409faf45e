"""The loss of a micro batch of pairs in the trainer: log-probabilities of answers from losses of tokens.

Tokens' losses come from vocabulary-parallel logits; context-parallel ranks hold parts of an answer and add them up.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from tsugiki.pretrain.config import PreferenceConfig, PreferenceObjective
from tsugiki.pretrain.training.preference.losses import MEASURES, losses, measures, rewards
from tsugiki.pretrain.training.samples.batches import Batch, Pairs


class _SumOverContext(torch.autograd.Function):
    """Sum over context-parallel ranks. Each rank's gradient is that of its own tokens: theirs are added up later."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        whole = own.clone()
        torch.distributed.all_reduce(whole, group=parallel_state.get_context_parallel_group())
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def pairs_of(batch: Batch) -> Pairs:
    """The pairs of a micro batch."""
    assert batch.pairs is not None, "a batch of the preference objective holds pairs"
    return batch.pairs


def answer_log_probabilities(batch: Batch, token_losses: Tensor) -> Tensor:
    """Log-probability of each answer [P, 2], fp32, from the cross entropy of tokens [b, s]."""
    pairs = pairs_of(batch)
    counted = token_losses.float() * batch.loss_mask
    sums = counted.new_zeros(pairs.reference.numel() + 1)
    # What belongs to no answer has the last place, and counts nothing.
    sums = sums.index_add(0, pairs.answers.flatten(), -counted.flatten())[:-1]
    if parallel_state.get_context_parallel_world_size() > 1:
        sums = _SumOverContext.apply(sums)  # type: ignore[no-untyped-call]
    return sums.view_as(pairs.reference)


class PreferenceLoss:
    """What the trainer minimises: the mean loss of the pairs of the global batch.

    Args:
        objective: which loss.
        config: beta and the like.

    Attributes:
        measures: names of what it reports beside loss and number of pairs.
    """

    measures = MEASURES

    def __init__(self, objective: PreferenceObjective, config: PreferenceConfig) -> None:
        self._objective, self._config = objective, config

    def __call__(self, batch: Batch, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What to minimise, pairs that count, and the sums for the report: loss, pairs, measures."""
        pairs = pairs_of(batch)
        policy = answer_log_probabilities(batch, output[0])
        reward = rewards(self._objective, self._config, policy, pairs.reference, pairs.lengths)
        total = losses(self._objective, self._config, reward).sum()
        # Every context-parallel rank has the whole loss; it is counted once.
        counts = parallel_state.get_context_parallel_rank() == 0
        number = torch.tensor(len(pairs.reference) if counts else 0, device=total.device)
        report = torch.cat(
            [
                torch.stack([total.detach().double(), number.double()]),
                measures(reward, policy, pairs.reference, pairs.lengths),
            ]
        )
        return total, number.to(torch.int), report if counts else torch.zeros_like(report)
