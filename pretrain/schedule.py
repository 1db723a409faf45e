"""Learning rate as a function of the tokens trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config import ScheduleConfig, TrainConfig

_DEFAULT_DECAY_SHARE = 0.1


@dataclass(frozen=True)
class Phase:
    """A phase with its numbers resolved.

    Attributes:
        name: shown in logs.
        trains: selectors of what trains.
        start_tokens: first token of the phase.
        end_tokens: token at which it ends.
        peak: highest learning rate.
        minimum: last learning rate.
        schedule: shape over the phase's own tokens.
    """

    name: str
    trains: tuple[str, ...]
    start_tokens: int
    end_tokens: int
    peak: float
    minimum: float
    schedule: ScheduleConfig

    def learning_rate(self, tokens: int) -> float:
        """Learning rate of the step that brings the tokens seen to `tokens`, counted from the run's start."""
        return learning_rate(
            self.schedule,
            tokens - self.start_tokens,
            self.end_tokens - self.start_tokens,
            self.peak,
            self.minimum,
        )


def learning_rate(schedule: ScheduleConfig, done: int, total: int, peak: float, minimum: float) -> float:
    """Learning rate after `done` of `total` tokens.

    Warm-up rises linearly from 0 to the peak. Then, with p the share of the rest that is done:
    cosine: minimum + (peak - minimum) (1 + cos(pi p)) / 2; linear: peak - (peak - minimum) p; wsd: the
    peak until decay_tokens before the end, then linear; constant: the peak.
    """
    warmup = min(schedule.warmup_tokens, total)
    if done < warmup:
        return peak * done / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "wsd":
        decay = schedule.decay_tokens or max(1, round(total * _DEFAULT_DECAY_SHARE))
        start = max(warmup, total - decay)
    else:
        start = warmup
    if done <= start or total <= start:
        return peak
    share = min(1.0, (done - start) / (total - start))
    if schedule.kind == "cosine":
        return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * share))
    return peak - (peak - minimum) * share


def resolve_phases(config: TrainConfig, total_tokens: int) -> list[Phase]:
    """The phases of a run of that many tokens; one that trains everything when none is configured."""
    optimizer = config.optimizer
    if not config.phases:
        return [
            Phase(
                "train",
                ("all",),
                0,
                total_tokens,
                optimizer.learning_rate,
                optimizer.minimum_learning_rate,
                config.schedule,
            )
        ]
    phases: list[Phase] = []
    start = 0
    for number, phase in enumerate(config.phases, start=1):
        end = total_tokens if phase.until_tokens is None else min(phase.until_tokens, total_tokens)
        peak = phase.learning_rate or optimizer.learning_rate
        minimum = phase.minimum_learning_rate
        if minimum is None:
            minimum = min(peak, optimizer.minimum_learning_rate)
        phases.append(
            Phase(
                phase.name or f"phase-{number}",
                tuple(phase.trains),
                start,
                end,
                peak,
                minimum,
                phase.schedule or config.schedule,
            )
        )
        start = end
    return phases


def phase_at(phases: list[Phase], tokens: int) -> Phase:
    """The phase of the step that starts after `tokens` tokens."""
    for phase in phases:
        if tokens < phase.end_tokens:
            return phase
    return phases[-1]
