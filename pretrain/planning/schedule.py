"""Learning rate as a function of the tokens trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tsugiki.experiment.errors import ConfigError
from tsugiki.pretrain.config import ScheduleConfig, TrainConfig

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


def check_schedule(config: TrainConfig, total_tokens: int) -> None:
    """Refuse phases and schedules that cannot be what was meant, in a training of that many tokens.

    Args:
        config: the train section.
        total_tokens: of the mixture; at least one step.

    Raises:
        ConfigError: a phase that ends after the training or holds no step, a last one that ends before it, a
            warm-up or a decay that does not fit.
    """
    step_tokens = config.global_batch * config.sequence_length
    trained = total_tokens // step_tokens * step_tokens  # whole steps
    for number, given in enumerate(config.phases, start=1):
        end, last = given.until_tokens, number == len(config.phases)
        if end is not None and (end > total_tokens or (last and end < trained)):
            raise ConfigError(
                "a phase ends after the training" if end > total_tokens else "the last phase ends too early",
                where=f"train.phases.{number - 1}.until_tokens",
                got=f"{end:,}",
                expected=f"null, or tokens.mixture.total_tokens = {total_tokens:,}"
                if last
                else f"less than tokens.mixture.total_tokens = {total_tokens:,}",
            )
    for number, phase in enumerate(resolve_phases(config, trained)):
        own = bool(config.phases) and config.phases[number].schedule is not None
        where = f"train.phases.{number}" if own else "train"
        length = phase.end_tokens - phase.start_tokens
        if -(-phase.start_tokens // step_tokens) * step_tokens >= phase.end_tokens:
            raise ConfigError(
                f"no step falls into phase {phase.name}",
                where=f"train.phases.{number}",
                got=f"tokens {phase.start_tokens:,} to {phase.end_tokens:,}",
                expected=f"a multiple of global_batch x sequence_length = {step_tokens:,} among them",
                fix="move until_tokens of this phase or of the one before it",
            )
        warmup, decay = phase.schedule.warmup_tokens, phase.schedule.decay_tokens or 0
        if warmup > length or warmup >= trained:
            raise ConfigError(
                "the warm-up is longer than what it warms up",
                where=f"{where}.schedule.warmup_tokens",
                got=f"{warmup:,}",
                expected=f"less than the {length:,} tokens of phase {phase.name}",
            )
        if warmup + decay > length:
            raise ConfigError(
                "warm-up and decay do not fit into the training",
                where=f"{where}.schedule.decay_tokens",
                got=f"{decay:,} after a warm-up of {warmup:,}",
                expected=f"at most {length - warmup:,}: phase {phase.name} has {length:,} tokens",
            )


def phase_at(phases: list[Phase], tokens: int) -> Phase:
    """The phase of the step that starts after `tokens` tokens."""
    for phase in phases:
        if tokens < phase.end_tokens:
            return phase
    return phases[-1]
