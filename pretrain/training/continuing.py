"""Another run's checkpoint to start from: `train.continue_from: RUN@STEP`; found and judged without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import CheckpointError, ConfigError
from tsugiki.experiment.files import sha256_file
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.checkpoint.names import MARK_NAME, complete_checkpoints, iteration_name
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.runtime.job import CHECKPOINTS_NAME

_WHERE = "train.continue_from"
_TOKENIZER_FILES = ("pieces.tsv", "tokenizer.model", "tokenizer.json")
"""What decides which id a piece of text has."""


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another run.

    Attributes:
        run_dir: directory of that run.
        step: of the checkpoint.
        train_dir: its `train`, or `train.partial` while it is being trained.
        facts: its `checkpoint.json`.
    """

    run_dir: Path
    step: int
    train_dir: Path
    facts: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """Directory of the checkpoint."""
        return self.train_dir / CHECKPOINTS_NAME / iteration_name(self.step)

    @property
    def mark(self) -> Path:
        """Holds size and sha256 of every file, so that its own digest stands for the whole checkpoint."""
        return self.checkpoint / MARK_NAME


def run_and_step(setting: str) -> tuple[Path, int]:
    """The run directory and the step of RUN@STEP.

    Raises:
        ConfigError: a path that cannot be one.
    """
    run, _, step = setting.rpartition("@")
    return expand_path(run), int(step)


def find_origin(setting: str) -> Origin:
    """The checkpoint that RUN@STEP names.

    Raises:
        ConfigError: no such run.
        CheckpointError: it has no such step, or one that was not finished.
    """
    run_dir, step = run_and_step(setting)
    folders = [run_dir / name for name in ("train", "train.partial")]
    trained = [folder for folder in folders if (folder / CHECKPOINTS_NAME).is_dir()]
    if not trained:
        raise ConfigError(
            "the run to continue from has no checkpoints",
            where=_WHERE,
            got=setting,
            expected="RUN@STEP: a run directory, as runs/NAME, with train/checkpoints",
        )
    steps: dict[int, Path] = {}
    for folder in reversed(trained):
        steps.update(dict.fromkeys(complete_checkpoints(folder / CHECKPOINTS_NAME), folder))
    if step not in steps:
        begun = [folder for folder in trained if (folder / CHECKPOINTS_NAME / iteration_name(step)).is_dir()]
        raise CheckpointError(
            "the checkpoint to continue from is not finished"
            if begun
            else "the run to continue from has no checkpoint of that step",
            where=begun[0] / CHECKPOINTS_NAME / iteration_name(step)
            if begun
            else trained[0] / CHECKPOINTS_NAME,
            got=f"{setting}: no {MARK_NAME}" if begun else setting,
            expected=f"one of the steps {', '.join(map(str, sorted(steps))) or '(none is complete)'}",
            fix=f"{_WHERE}: RUN@STEP of a complete checkpoint",
        )
    mark = steps[step] / CHECKPOINTS_NAME / iteration_name(step) / MARK_NAME
    try:
        facts = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "cannot read what a checkpoint says of itself", where=mark, got=error
        ) from error
    return Origin(run_dir, step, steps[step], facts)


def check_origin(origin: Origin, config: TrainConfig, spec: ModelSpec, tokenizer_dir: Path | None) -> None:
    """Refuse a checkpoint whose weights or moments mean something else here.

    Args:
        origin: the checkpoint.
        config: the train section of the run that begins.
        spec: its model.
        tokenizer_dir: its tokenizer; None where there is none to compare.

    Raises:
        CheckpointError: another architecture, another vocabulary, or moments of another precision.
    """
    theirs = ModelSpec.load(origin.train_dir).model_dump()
    ours = spec.model_dump()
    differing = [name for name in ours if ours[name] != theirs[name]]
    if "vocabulary_size" in differing:
        raise _other_vocabulary(
            origin, f"{theirs['vocabulary_size']:,} rows", f"{ours['vocabulary_size']:,} rows, as here"
        )
    # What says how positions turn has no weights: a run may go on at a longer context.
    weights = [name for name in differing if name not in ("max_positions", "rope_theta", "rope_scaling")]
    if weights:
        raise CheckpointError(
            "the checkpoint to continue from has another architecture",
            where=f"{_WHERE}: {origin.checkpoint}",
            got=", ".join(f"{name} {theirs[name]}" for name in weights),
            expected=", ".join(f"{name} {ours[name]}" for name in weights) + ", as here",
            fix="a run of the same base model",
        )
    for name in _TOKENIZER_FILES if tokenizer_dir is not None else ():
        assert tokenizer_dir is not None
        mine, other = tokenizer_dir / name, origin.run_dir / "tokenizer" / name
        if mine.is_file() and other.is_file() and sha256_file(mine) != sha256_file(other):
            raise _other_vocabulary(origin, other, f"the same as {mine}")
    half = config.precision != "fp32"
    if config.continue_moments and (origin.facts.get("precision", config.precision) != "fp32") != half:
        raise CheckpointError(
            "the moments to continue from are those of another precision",
            where=f"{_WHERE}: {origin.checkpoint}",
            got=origin.facts["precision"],
            expected=f"train.precision: {config.precision}, as here",
            fix="train.continue_moments: false takes the weights alone",
        )


def _other_vocabulary(origin: Origin, got: object, expected: str) -> CheckpointError:
    return CheckpointError(
        "the checkpoint to continue from has another vocabulary",
        where=f"{_WHERE}: {origin.checkpoint}",
        got=got,
        expected=expected,
        fix="use the tokenizer section of that run, so that every id means the same piece",
    )
