"""Losses over pairs of answers, of which one is preferred: pure functions of log-probabilities.

With r = log p(answer | prompt) - log p_reference(answer | prompt), summed over the answer's tokens, n tokens of an
answer, c the chosen and r the rejected one, an answer's reward R and the loss of a pair are

    dpo                     R = beta r             -log sigmoid(R_c - R_r)                  arXiv 2305.18290, eq. 7
    dpo_length_normalised   R = beta r / n         -log sigmoid(R_c - R_r)                  TRL's sigmoid_norm
    dpo_length_regularised  R = beta r + alpha n   -log sigmoid(R_c - R_r)                  arXiv 2403.19159, eq. 9
    ipo                     R = beta r / n         ((R_c - R_r) / beta - 1 / (2 beta))^2    arXiv 2310.12036, eq. 17
    simpo                   R = beta log p / n     -log sigmoid(R_c - R_r - gamma)          arXiv 2405.14734, eq. 6

IPO's log-ratios are means over tokens, as its authors told TRL. Compared with TRL in
tests/unit/pretrain/test_preference_losses.py.

Shapes: P pairs; the last axis is (chosen, rejected).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki.pretrain.config import PreferenceConfig, PreferenceObjective

MEASURES = (
    "accuracy",
    "margin",
    "reward_chosen",
    "reward_rejected",
    "kl",
    "tokens_chosen",
    "tokens_rejected",
)
"""What is reported of pairs, in the order of :func:`measures`."""


def rewards(
    objective: PreferenceObjective,
    config: PreferenceConfig,
    policy: Tensor,
    reference: Tensor,
    lengths: Tensor,
) -> Tensor:
    """What the loss compares of each answer.

    Args:
        objective: which loss.
        config: beta and the like.
        policy: log-probabilities of the answers [P, 2], in nats.
        reference: those of the reference model [P, 2]; not used by simpo.
        lengths: tokens of the answers [P, 2].

    Returns:
        Rewards [P, 2].
    """
    ratio = policy if objective == "simpo" else policy - reference
    if objective in ("ipo", "dpo_length_normalised", "simpo"):
        ratio = ratio / lengths.clamp(min=1)
    reward = config.beta * ratio
    return reward + config.length_weight * lengths if objective == "dpo_length_regularised" else reward


def losses(objective: PreferenceObjective, config: PreferenceConfig, reward: Tensor) -> Tensor:
    """Loss of each pair [P] from the rewards of its answers [P, 2]."""
    margin = reward[:, 0] - reward[:, 1]
    if objective == "ipo":
        return (margin / config.beta - 1 / (2 * config.beta)).square()
    return -F.logsigmoid(margin - config.target_margin if objective == "simpo" else margin)


def measures(reward: Tensor, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """Sums over the pairs of what :data:`MEASURES` names [7], fp64.

    ``kl`` is the mean of log p_reference - log p over both answers: where the reference wrote them, as in
    self-preferencing, an estimate of the divergence of the policy from it in nats an answer.
    """
    reward, policy, reference = (part.detach().double() for part in (reward, policy, reference))
    chosen, rejected = reward.unbind(dim=1)
    parts = [
        (chosen > rejected).double(), chosen - rejected, chosen, rejected, (reference - policy).mean(dim=1),
        *lengths.double().unbind(dim=1),
    ]  # fmt: skip
    return torch.stack([part.sum() for part in parts])
