"""What a study would do and cost, before anything is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tsugiki.experiment.errors import TsugikiError
from tsugiki.study.config import Price
from tsugiki.study.local import Machine
from tsugiki.study.trials import Study, Trial

if TYPE_CHECKING:
    from tsugiki.pipeline import Experiment


def preview(study: Study) -> Iterator[str]:
    """Lines: trials with their stages, what is shared, hours and cost of the trainings."""
    config = study.config
    yield f"{config.name}: {len(study.trials)} trials of {config.experiment}; folder {study.directory}"
    total, known = 0.0, 0
    for name, trial in study.trials.items():
        taken = study.taken(name)
        made = [stage for stage in trial.keys if stage not in taken and not _is_done(trial, stage)]
        hours = planned_gpu_hours(trial, config.price)
        if isinstance(hours, float) and "train" in made:
            total, known = total + hours, known + 1
        yield f"  {name}"
        yield f"    makes  {', '.join(made) or 'nothing, complete'}"
        if taken:
            yield f"    takes  {_by_maker(taken)}"
        yield "    train  " + (
            f"{hours:,.2f} GPU-hours of {config.price.gpu}" if isinstance(hours, float) else hours
        )
    users = Counter(
        (maker.name, stage) for name in study.trials for stage, maker in study.taken(name).items()
    )
    yield f"shared: {len(users)} stages, made once and hard-linked {sum(users.values())} times"
    if known:
        cost = "" if config.price.per_gpu_hour is None else f", cost {total * config.price.per_gpu_hour:,.2f}"
        of = f"{config.price.gpu} at {config.price.mfu:.0%} MFU"
        yield f"training: {total:,.2f} GPU-hours of {of}{cost} ({known} trials)"
    machine = Machine.of(config)
    at_once = 0
    while machine.fits(config) and at_once < len(study.trials):
        machine.take(config)
        at_once += 1
    yield f"on this machine: {at_once} at once"


def planned_gpu_hours(trial: Trial, price: Price) -> float | str:
    """GPU-hours of a trial's training by its plan, or why they are not known."""
    if not hasattr(trial.experiment, "plan"):
        return "not planned"
    try:
        return cast("Experiment", trial.experiment).plan(price.gpu, None, 8, price.mfu).work.gpu_hours
    except TsugikiError as error:
        return f"not known: {error.what}"


def _is_done(trial: Trial, stage: str) -> bool:
    """Whether a stage is complete; whether it is unchanged is known when its inputs are."""
    graph = trial.experiment.graph()
    return all(decision.action == "skip" for decision in graph.preview(graph.select(None, stage)))


def _by_maker(taken: dict[str, Path]) -> str:
    makers: dict[str, list[str]] = {}
    for stage, maker in taken.items():
        makers.setdefault(maker.name, []).append(stage)
    return "; ".join(f"{', '.join(stages)} of {maker}" for maker, stages in makers.items())
