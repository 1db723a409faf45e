"""Learning rate as a function of the tokens trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tsugiki.experiment.errors import ConfigError
from tsugiki.pretrain.config import ScheduleConfig, TrainConfig

_DEFAULT_DECAY_SHARE = 0.1
_DEFAULT_CONSTANT_SHARE = 0.5


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

    - cosine: minimum + (peak - minimum) (1 + cos(pi p)) / 2; linear: peak - (peak - minimum) p; constant: the peak.
    - wsd (warm-up, stable, decay; MiniCPM, arXiv 2404.06395): the peak until decay_tokens before the end.
    - infinite (Ibrahim et al., arXiv 2403.08763): a cosine from the peak to the constant rate in descent_tokens,
      the constant rate, and the decay from it, where there is one.
    - cooldown: the decay alone, from the peak.

    With q the share of the decay that is done and from the rate it begins at, the decay is linear:
    from - (from - minimum) q; 1-sqrt (Hägele et al., arXiv 2405.18392): minimum + (from - minimum) (1 - sqrt(q));
    exponential (both papers above): from (minimum / from)^q.
    """
    warmup = min(schedule.warmup_tokens, total)
    if done < warmup:
        return peak * done / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind in ("cosine", "linear"):
        share = _share(done, warmup, total)
        return _cosine(peak, minimum, share) if schedule.kind == "cosine" else peak - (peak - minimum) * share
    start = max(warmup, total - decay_length(schedule, total))
    held = peak
    if schedule.kind == "infinite":
        held = constant_rate(schedule, peak)
        descent = warmup + descent_length(schedule)
        if done < min(descent, start):
            return _cosine(peak, held, _share(done, warmup, descent))
    return _decayed(schedule.decay_shape, held, minimum, _share(done, start, total))


def decay_length(schedule: ScheduleConfig, total: int) -> int:
    """Tokens of the final decay of a training of that many, warm-up included."""
    if schedule.kind == "cooldown":
        return total
    if schedule.kind == "infinite":
        return schedule.decay_tokens or 0
    return schedule.decay_tokens or max(1, round(total * _DEFAULT_DECAY_SHARE))


def descent_length(schedule: ScheduleConfig) -> int:
    """Tokens in which `infinite` goes down to its constant part."""
    return schedule.descent_tokens or schedule.warmup_tokens


def constant_rate(schedule: ScheduleConfig, peak: float) -> float:
    """What `infinite` holds."""
    return schedule.constant_learning_rate or peak * _DEFAULT_CONSTANT_SHARE


def _share(done: int, start: int, end: int) -> float:
    """How much of start ... end is done, from 0 to 1."""
    return 0.0 if done <= start or end <= start else min(1.0, (done - start) / (end - start))


def _cosine(high: float, low: float, share: float) -> float:
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * share))


def _decayed(shape: str, high: float, low: float, share: float) -> float:
    if share == 0.0:
        return high
    if shape == "1-sqrt":
        return low + (high - low) * (1.0 - math.sqrt(share))
    if shape == "exponential":
        return high * math.pow(low / high, share)
    return high - (high - low) * share


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
        ConfigError: steps to profile that do not come; a phase that ends after the training or holds no step, a last
            one that ends before it, a warm-up or a decay that does not fit.
    """
    step_tokens = config.global_batch * config.sequence_length
    trained = total_tokens // step_tokens * step_tokens  # whole steps
    if config.profile is not None and config.profile.steps[1] > trained // step_tokens:
        raise ConfigError(
            "steps to profile come after the training",
            where="train.profile.steps",
            got=list(config.profile.steps),
            expected=f"within 1 to {trained // step_tokens:,}",
        )
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
        if -(-phase.start_tokens // step_tokens) * step_tokens >= phase.end_tokens:
            raise ConfigError(
                f"no step falls into phase {phase.name}",
                where=f"train.phases.{number}",
                got=f"tokens {phase.start_tokens:,} to {phase.end_tokens:,}",
                expected=f"a multiple of global_batch x sequence_length = {step_tokens:,} among them",
                fix="move until_tokens of this phase or of the one before it",
            )
        _check_shape(phase, where, trained)


def _check_shape(phase: Phase, where: str, trained: int) -> None:
    """Whether the parts of a phase's schedule fit into it; `where` is the section that has the schedule."""
    schedule, length = phase.schedule, phase.end_tokens - phase.start_tokens
    warmup = schedule.warmup_tokens
    if warmup > length or warmup >= trained:
        raise ConfigError(
            "the warm-up is longer than what it warms up",
            where=f"{where}.schedule.warmup_tokens",
            got=f"{warmup:,}",
            expected=f"less than the {length:,} tokens of phase {phase.name}",
        )
    decay = schedule.decay_tokens or 0
    descent = descent_length(schedule) if schedule.kind == "infinite" else 0
    if warmup + descent + decay > length:
        before = f"a warm-up of {warmup:,}" + (f" and a descent of {descent:,}" if descent else "")
        raise ConfigError(
            "warm-up and decay do not fit into the training",
            where=f"{where}.schedule.decay_tokens",
            got=f"{decay:,} after {before}",
            expected=f"at most {max(length - warmup - descent, 0):,}: phase {phase.name} has {length:,} tokens",
        )
    held = constant_rate(schedule, phase.peak)
    if schedule.kind == "infinite" and not phase.minimum <= held <= phase.peak:
        raise ConfigError(
            "the constant learning rate is not between minimum and peak",
            where=f"{where}.schedule.constant_learning_rate",
            got=held,
            expected=f"{phase.minimum:g} to {phase.peak:g}",
        )
    if schedule.decay_shape == "exponential" and phase.minimum == 0:
        raise ConfigError(
            "an exponential decay never reaches zero",
            where=f"{where}.schedule.decay_shape",
            got="exponential, with a minimum_learning_rate of 0",
            expected="linear or 1-sqrt, or a minimum_learning_rate above 0",
        )


def phase_at(phases: list[Phase], tokens: int) -> Phase:
    """The phase of the step that starts after `tokens` tokens."""
    for phase in phases:
        if tokens < phase.end_tokens:
            return phase
    return phases[-1]
