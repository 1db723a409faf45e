"""What a training does along its tokens, in words."""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.planning.schedule import (
    Phase,
    constant_rate,
    decay_length,
    descent_length,
    resolve_phases,
)


def course(train: TrainConfig, total_tokens: int, mixture_changes: Sequence[int] = ()) -> list[str]:
    """Where a training begins, its learning rate by phase, and the steps at which its mixture changes.

    Args:
        train: its configuration.
        total_tokens: its length; what does not fill a step is left out.
        mixture_changes: tokens from which the mixture has other shares.
    """
    step_tokens = train.global_batch * train.sequence_length
    lines = []
    if train.continue_from is not None:
        moments = "with" if train.continue_moments else "without"
        data = "every source anew" if train.continue_repeats_data else "what was read comes last"
        lines.append(f"continues {train.continue_from}, {moments} its moments, {data}")
    for phase in resolve_phases(train, total_tokens // step_tokens * step_tokens):
        name = f"{phase.name}: " if train.phases else ""
        lines.append(f"{name}{phase.schedule.kind}, {', '.join(_parts(phase))}")
    lines += [
        f"the mixture changes at {tokens:,} tokens, with step {-(-tokens // step_tokens) + 1:,}"
        for tokens in mixture_changes
    ]
    return lines


def _parts(phase: Phase) -> list[str]:
    """The parts of a phase's schedule, each with the token at which it ends and the learning rate there."""
    schedule, start, end = phase.schedule, phase.start_tokens, phase.end_tokens
    parts: list[tuple[str, int]] = []
    warm = start + schedule.warmup_tokens
    if schedule.warmup_tokens:
        parts.append(("warm-up", warm))
    if schedule.kind == "infinite" and descent_length(schedule):
        rate = constant_rate(schedule, phase.peak)
        parts.append((f"down to {rate:g}", warm + descent_length(schedule)))
    if schedule.kind in ("cosine", "linear"):
        parts.append((f"down to {phase.minimum:g}", end))
    else:
        decay = 0 if schedule.kind == "constant" else decay_length(schedule, end - start)
        if schedule.kind != "cooldown":
            parts.append(("constant", end - decay))
        if decay:
            parts.append((f"decay ({schedule.decay_shape}) to {phase.minimum:g}", end))
    return [f"peak {phase.peak:g}", *(f"{what} until {until:,}" for what, until in parts)]
