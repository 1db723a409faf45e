"""What an experiment will need, before a GPU-hour is spent: ``tsugiki plan``.

Nothing is started, loaded or downloaded: everything follows from the configuration and, where it is on
this machine, the base model's ``config.json``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.shipped import shipped_folder
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.text.tokenizer_files import tokenizer_size
from tsugiki.pretrain.config import BaseConfig, TrainConfig
from tsugiki.pretrain.convert_config import GraftConfig
from tsugiki.pretrain.model.context_extension import extended_context
from tsugiki.pretrain.planning.described import course
from tsugiki.pretrain.planning.divisions import Problem
from tsugiki.pretrain.planning.flops import Work, training_work
from tsugiki.pretrain.planning.layouts import Machine, Proposal, proposals
from tsugiki.pretrain.planning.memory import TORCH_KERNELS, Kernels, StageMemory, memory_per_stage
from tsugiki.pretrain.planning.problems import layout_problems

_MISTRAL_V1_ROWS = 32_000
_COLUMNS = ("weights", "gradients", "optimizer", "activations", "logits", "workspace", "total")


class BaseNotHere(ConfigError):
    """The base model's architecture cannot be known on this machine."""


class _AutoSize(Protocol):
    @property
    def maximum(self) -> int: ...


class Extension(Protocol):
    """What a plan reads of the vocabulary extension's configuration."""

    @property
    def size(self) -> int | Literal["auto"]:
        """Pieces to add."""

    @property
    def multiple_of(self) -> int:
        """The final vocabulary is a multiple of this."""

    @property
    def tensor_parallel(self) -> int:
        """It is also a multiple of 8 times this."""

    @property
    def auto(self) -> _AutoSize:
        """Bounds of ``size: auto``."""


@dataclass(frozen=True)
class Plan:
    """What an experiment will need.

    Attributes:
        name: the experiment.
        base: architecture of the base model.
        spec: architecture that is trained, with the extended vocabulary.
        train: training configuration.
        data_parallel_size: how many ranks hold the same part of the model.
        machine: what it was planned for.
        stages: memory of one GPU of every pipeline stage.
        work: tokens, steps, FLOPs, hours, storage.
        problems: why the layout cannot run.
        proposals: layouts that fit, when this one does not.
        notes: what was assumed.
        course: where it begins, its schedule, when its mixture changes.
    """

    name: str
    base: ModelSpec
    spec: ModelSpec
    train: TrainConfig
    data_parallel_size: int
    machine: Machine
    stages: list[StageMemory]
    work: Work
    problems: list[Problem] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    course: list[str] = field(default_factory=list)

    @property
    def world_size(self) -> int:
        """GPUs."""
        return self.train.parallel.model_processes * self.data_parallel_size

    @property
    def fits(self) -> bool:
        """The layout is valid and every GPU has the memory."""
        return not self.problems and max(item.total for item in self.stages) <= self.machine.usable_bytes

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        parallel = self.train.parallel
        return {
            "name": self.name,
            "parameters": self.spec.parameters,
            "base_parameters": self.base.parameters,
            "vocabulary_size": self.spec.vocabulary_size,
            "tokens": self.work.tokens,
            "steps": self.work.steps,
            "world_size": self.world_size,
            "gpu_memory_bytes": [item.total for item in self.stages],
            "fits": self.fits,
            "layout": {
                "tensor": parallel.tensor,
                "pipeline": parallel.pipeline,
                "context": parallel.context,
                "data": self.data_parallel_size,
            },
            "gpu": self.machine.gpu.name,
            "gpu_usable_bytes": self.machine.usable_bytes,
            "mfu": self.machine.mfu,
            "gpu_memory": [
                {
                    "parameters": item.parameters,
                    "weights": item.weights,
                    "gradients": item.gradients,
                    "optimizer": item.optimizer,
                    "activations": item.activations,
                    "logits": item.logits,
                    "workspace": item.workspace,
                }
                for item in self.stages
            ],
            "flops": self.work.flops,
            "causal_flops": self.work.causal_flops,
            "hours": self.work.hours,
            "gpu_hours": self.work.gpu_hours,
            "checkpoint_bytes": self.work.checkpoint_bytes,
            "storage_bytes": self.work.storage_bytes,
            "problems": [str(problem) for problem in self.problems],
            "proposals": [item.to_json() for item in self.proposals],
            "notes": self.notes,
            "course": self.course,
        }

    def to_text(self) -> str:
        """For people."""
        spec, work, parallel = self.spec, self.work, self.train.parallel
        added = spec.vocabulary_size - self.base.vocabulary_size
        lines = [
            f"{self.name}: {spec.family}, {spec.layers} layers x {spec.hidden_size}",
            f"  parameters   {spec.parameters:,} (base {self.base.parameters:,})",
            f"  vocabulary   {spec.vocabulary_size:,} (base {self.base.vocabulary_size:,} + {added:,})",
            *self._context(),
            f"  training     {work.tokens:,} tokens in {work.steps:,} steps of {self.train.global_batch} x "
            f"{self.train.sequence_length}",
            *(f"  {'course' * (number == 0):<13}{line}" for number, line in enumerate(self.course)),
            f"  layout       {self.world_size} GPUs: tensor {parallel.tensor} x pipeline {parallel.pipeline} "
            f"x context {parallel.context} x data {self.data_parallel_size}",
            f"  work         {work.flops:.3e} FLOP (attention counted causal: {work.causal_flops:.3e})",
            f"  time         {_hours(work.hours)}, {work.gpu_hours:,.1f} GPU-hours at "
            f"{self.machine.mfu:.0%} MFU of {self.machine.gpu.name}: "
            f"{work.tokens / work.gpu_hours / 3600:,.0f} tokens/s a GPU",
            f"  storage      {_size(work.checkpoint_bytes)} a checkpoint, {_size(work.storage_bytes)} in all",
            "",
            "  stage  " + "".join(f"{column:>13}" for column in _COLUMNS),
        ]
        for number, item in enumerate(self.stages):
            lines.append(
                f"  {number:<7}" + "".join(f"{_size(getattr(item, column)):>13}" for column in _COLUMNS)
            )
        lines.append("")
        limit = f"{_size(self.machine.usable_bytes)} usable of one {self.machine.gpu.name}"
        verdict = "fits" if self.fits else "CANNOT RUN" if self.problems else "DOES NOT FIT"
        lines.append(f"  {verdict}: {limit}")
        lines += [f"  problem: {problem}" for problem in self.problems]
        if self.proposals:
            lines += ["", "  layouts that fit, best first:"]
            lines += [f"    {item.to_text()}" for item in self.proposals]
        elif not self.fits:
            lines.append("  no layout fits, nor would one on up to 128 times as many GPUs")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _context(self) -> list[str]:
        """A line about positions, where the graft changes them or the rotary frequencies."""
        before, after = self.base, self.spec
        changes = []
        if after.max_positions != before.max_positions:
            changes.append(f"{after.max_positions:,} positions (base {before.max_positions:,})")
        if after.rope_theta != before.rope_theta:
            changes.append(f"rope base {after.rope_theta:g} (base {before.rope_theta:g})")
        if after.rope_scaling != before.rope_scaling and after.rope_scaling is not None:
            changes.append(f"{after.rope_scaling['rope_type']} scaling by {after.rope_scaling['factor']:g}")
        return [f"  context      {', '.join(changes)}"] if changes else []


def make_plan(
    *,
    name: str,
    base: BaseConfig,
    extension: Extension | None,
    total_tokens: int,
    train: TrainConfig,
    machine: Machine,
    graft: GraftConfig | None = None,
    run_dir: Path | None = None,
    world_size: int | None = None,
    kernels: Kernels = TORCH_KERNELS,
    mixture_changes: Sequence[int] = (),
) -> Plan:
    """Plan an experiment.

    Args:
        name: the experiment.
        base: its base model.
        extension: its vocabulary extension, None to keep the base vocabulary.
        total_tokens: its training length.
        train: its training configuration.
        machine: accelerator and MFU to plan for.
        graft: its graft section, which may lengthen the context.
        run_dir: where finished stages tell more than the configuration (``size: auto``).
        world_size: GPUs; None takes ``train.parallel`` with its data (1 when null).
        kernels: what the kernels in use keep for the backward pass.
        mixture_changes: tokens from which the mixture has other shares.

    Raises:
        ConfigError: the base's architecture is not known here, a context that cannot be made of its own, or
            the GPUs are not a multiple of the model-parallel size.
    """
    spec, notes = base_spec(base)
    rows, note = extended_rows(spec.vocabulary_size, extension, run_dir)
    notes += [note] if note else []
    extended = spec.model_copy(update={"vocabulary_size": rows})
    if graft is not None:
        extended = extended_context(extended, graft)
    model_parallel_size = train.parallel.model_processes
    if world_size is not None and world_size % model_parallel_size:
        raise ConfigError(
            "the GPUs are not a multiple of the model-parallel size",
            where="--gpus",
            got=world_size,
            expected=f"a multiple of tensor x pipeline x context = {model_parallel_size}",
            fix="say --gpus N, or change train.nodes in the cluster file (--set cluster.train.nodes=N)",
        )
    data_parallel_size = (
        world_size // model_parallel_size if world_size is not None else (train.parallel.data or 1)
    )
    if world_size is None and train.parallel.data is None:
        notes.append(
            "train.parallel.data is null: planned for a data-parallel size of 1; --gpus N plans for more"
        )
    work = training_work(
        extended, train, total_tokens, machine.gpu, machine.mfu, model_parallel_size * data_parallel_size
    )
    if train.compares:
        # Forward alone is a third of a step's arithmetic, and every pair is read once.
        notes.append(
            f"the stage reference reads every pair once, forward only: at most {work.flops / 3:.3e} FLOP, "
            f"{_hours(work.hours / 3)} where the training is one epoch; no second model is held in training"
        )
    problems = layout_problems(train, extended, data_parallel_size)
    stages = memory_per_stage(extended, train, data_parallel_size, kernels)
    plan = Plan(
        name=name,
        base=spec,
        spec=extended,
        train=train,
        data_parallel_size=data_parallel_size,
        machine=machine,
        stages=stages,
        work=work,
        problems=problems,
        notes=notes,
        course=course(train, total_tokens, mixture_changes),
    )
    if not plan.fits:
        plan.proposals.extend(proposals(extended, train, plan.world_size, machine, kernels))
    return plan


def base_spec(base: BaseConfig) -> tuple[ModelSpec, list[str]]:
    """Architecture of the base model, and what was assumed.

    Taken from ``scratch``, from ``path`` where it is on this machine, else from ``architecture``.

    Raises:
        BaseNotHere: none of them says.
        ConfigError: ``model_type`` of its config.json is no known family.
        CheckpointError: config.json cannot be read, or says what cannot be represented.
    """
    if base.scratch is not None:
        return ModelSpec.from_hf(base.scratch.hf_config(_scratch_rows(base.scratch.tokenizer))), []
    assert base.path is not None
    missing = ""
    try:
        path = expand_path(base.path)
    except ConfigError as error:
        missing = f" ({error.what}: {error.got})"
    else:
        if (path / "config.json").is_file():
            return ModelSpec.from_hf(path), []
    if base.architecture is None:
        raise BaseNotHere(
            f"the base model is not on this machine{missing}, so its size is unknown",
            where="base.path",
            got=base.path,
            fix="say base.architecture: its config.json, e.g. one of configs/models/",
        )
    file = expand_path(base.architecture)
    if not file.is_file():
        raise ConfigError(
            "no such config.json",
            where="base.architecture",
            got=base.architecture,
            fix=f"one of {', '.join(sorted(f'configs/models/{item.name}' for item in _models()))}",
        )
    return ModelSpec.from_hf(file), [f"base.path is not on this machine; planned with {base.architecture}"]


def _models() -> list[Path]:
    return list((shipped_folder("configs") / "models").glob("*.json"))


def _scratch_rows(tokenizer: str) -> int:
    if tokenizer == "mistral-v1":
        return _MISTRAL_V1_ROWS
    path = expand_path(tokenizer)
    if not path.is_file():
        raise ConfigError("no such SentencePiece model", where="base.scratch.tokenizer", got=tokenizer)
    return tokenizer_size(path)


def extended_rows(rows: int, extension: Extension | None, run_dir: Path | None = None) -> tuple[int, str]:
    """Rows of the vocabulary after the extension, and what was assumed ("" when nothing was).

    Swallow, 32,000 + 11,176 in multiples of 8, gives 43,176.
    """
    if extension is None:
        return rows, ""
    if extension.size != "auto":
        wanted, note = rows + extension.size, ""
    else:
        pieces = run_dir / "tokenizer" / "pieces.tsv" if run_dir is not None else None
        if pieces is not None and pieces.is_file():
            with pieces.open(encoding="utf-8") as lines:
                return rows + sum(1 for _ in lines) - 1, f"vocabulary size as found in {pieces}"
        wanted = rows + extension.auto.maximum
        note = (
            f"tokenizer.extend.size is auto: planned with its maximum of {extension.auto.maximum:,} pieces "
            "until the tokenizer stage has run"
        )
    multiple = math.lcm(extension.multiple_of, 8 * extension.tensor_parallel)
    return -(-wanted // multiple) * multiple, note


def _size(count: float) -> str:
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.3g} seconds"
