"""The train stage: continued pretraining with Megatron-core."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.errors import CheckpointError, DataError, Interrupted
from tsugiki.experiment.model.model_spec import SPEC_NAME, ModelSpec
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.planning.divisions import refuse
from tsugiki.pretrain.planning.problems import layout_problems
from tsugiki.pretrain.planning.schedule import check_schedule
from tsugiki.pretrain.runtime.environment import set_variables
from tsugiki.pretrain.runtime.job import CHECKPOINTS_NAME, METRICS_NAME, PACKING_NAME, TrainJob
from tsugiki.pretrain.runtime.signals import StopRequest
from tsugiki.pretrain.runtime.world import World
from tsugiki.pretrain.training.continuing import check_origin, find_origin, run_and_step
from tsugiki.pretrain.training.launch import run_here
from tsugiki.pretrain.training.metrics.follower import MetricsFollower
from tsugiki.pretrain.training.preference.reference import check as check_reference

_HF_CONFIG_NAME = "hf_config.json"
_GRAFT_FILES = (SPEC_NAME, _HF_CONFIG_NAME)


def run(
    config: TrainConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Train, or go on training from the last checkpoint in `output_dir`.

    Inside a job that Slurm's srun or torchrun started, every process calls this and is one rank.
    Otherwise the processes of the layout are started here.

    Raises:
        ConfigError: a layout that does not fit the model, the batch or the machine.
        DataError: tokens that are missing or do not belong to the model.
        CheckpointError: weights that cannot be read or checkpoints that cannot be written.
        TrainingError: a non-finite loss, a dead or hanging process.
        Interrupted: asked to stop; a checkpoint is saved.
    """
    with StopRequest() as stop:
        return _train(config, inputs, output_dir, context, stop)


def _train(
    config: TrainConfig,
    inputs: Mapping[str, Path],
    output_dir: Path,
    context: StageContext,
    stop: StopRequest,
) -> StageResult:
    graft, tokens = inputs["graft"], inputs["tokens"]
    spec = ModelSpec.load(graft)
    mixture = Mixture.load(tokens)
    if not (graft / "checkpoint").is_dir():
        raise CheckpointError(
            "no weights to start from", where=graft / "checkpoint", fix="run `tsugiki graft CONFIG` first"
        )
    world = World.from_environment()
    processes = config.parallel.model_processes * (config.parallel.data or 1) if world is None else world.size
    refuse(layout_problems(config, spec, processes=processes))
    check_schedule(config, mixture.total_tokens)
    reference = inputs.get("reference")
    if reference is not None:
        check_reference(reference, graft, tokens)
    refuse_other_kinds(config, mixture, tokens)
    continue_from = None
    if config.continue_from is not None and not (output_dir / CHECKPOINTS_NAME / "latest.json").is_file():
        origin = find_origin(config.continue_from)
        check_origin(origin, config, spec, inputs.get("tokenizer"))
    if config.continue_from is not None:
        folder, step = run_and_step(config.continue_from)
        continue_from = f"{folder.resolve()}@{step}"
    # A rank that was started hears of it when it builds its model: asking the GPU here would start CUDA before
    # its variables are set.
    if world is None and (config.backend != "auto" or config.precision == "fp8"):
        from tsugiki.pretrain.model.backend import acceleration_of

        acceleration_of(config)
    job = TrainJob(
        config=config,
        graft_dir=graft.resolve(),
        tokens_dir=tokens.resolve(),
        output_dir=output_dir.resolve(),
        seed=context.seed,
        continue_from=continue_from,
        reference_dir=None if reference is None else reference.resolve(),
        tracking_runs=context.tracker.run_ids,
    )
    job.work_dir.mkdir(parents=True, exist_ok=True)
    if world is None or world.rank == 0:
        # Before the first checkpoint: a checkpoint is exported with them, while training goes on.
        for name in _GRAFT_FILES:
            if (graft / name).is_file():
                shutil.copyfile(graft / name, output_dir / name)
    context.tracker.log_params(_parameters(config, spec, mixture, processes))
    with MetricsFollower(job.metrics_path, context.tracker):
        run_ranks(job, world, stop)
    if world is not None and world.rank > 0:
        return StageResult()  # rank 0 seals the stage and renames its directory at any moment from here
    return _result(config, spec, mixture, output_dir, processes)


def run_ranks(job: TrainJob, world: World | None, stop: StopRequest) -> None:
    """Be the rank that this process is of a job, or start all ranks of the layout here and wait for them."""
    if world is None:
        parallel = job.config.parallel
        run_here(job, parallel.model_processes * (parallel.data or 1), stop)
    else:
        _run_as_rank(job, world, stop)


def _run_as_rank(job: TrainJob, world: World, stop: StopRequest) -> None:
    set_variables(deterministic=job.config.deterministic)  # before anything that may start CUDA is imported
    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

    import_megatron()
    from tsugiki.pretrain.training.worker import leave_without_teardown, train

    try:
        finished = train(job, world, stop)
    except BaseException as error:
        leave_without_teardown(error)
        raise
    if not finished:
        raise Interrupted(
            "training was asked to stop", where=job.checkpoints_dir, fix="requeue the job to continue"
        )


def refuse_other_kinds(config: TrainConfig, mixture: Mixture, tokens: Path) -> None:
    """Refuse sources that the objective cannot learn from.

    Raises:
        DataError: pairs for the next token, or anything else for an objective over pairs.
    """
    pairs = config.objective != "next_token"
    for source in mixture.sources:
        if (source.kind == "preference") != pairs:
            raise DataError(
                f"source '{source.name}' is not what train.objective: {config.objective} learns from",
                where=tokens / Mixture.file_name,
                got=f"kind: {source.kind}",
                expected="kind: preference" if pairs else "text, parallel or instruction",
                fix="give it no weight in tokens.mixture.weights, or set another objective",
            )


def _parameters(config: TrainConfig, spec: ModelSpec, mixture: Mixture, processes: int) -> dict[str, Any]:
    steps = mixture.total_tokens // (config.global_batch * config.sequence_length)
    return {
        "model/parameters": spec.parameters,
        "model/vocabulary_size": spec.vocabulary_size,
        "train/steps": steps,
        "train/processes": processes,
    }


def _result(
    config: TrainConfig, spec: ModelSpec, mixture: Mixture, output_dir: Path, processes: int
) -> StageResult:
    lines = [
        json.loads(text) for text in (output_dir / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    ]
    training = [line for line in lines if "train/loss" in line]
    validation = [line for line in lines if any(key.startswith("validation/") for key in line)]
    metrics: dict[str, float] = {}
    for found in (training[-1:], validation[-1:]):
        for line in found:
            metrics.update({key: value for key, value in line.items() if "/" in key})
    latest = json.loads((output_dir / CHECKPOINTS_NAME / "latest.json").read_text(encoding="utf-8"))
    tokens = latest["iteration"] * config.global_batch * config.sequence_length
    summary = [
        f"{latest['iteration']} steps, {tokens:,} tokens, {spec.parameters:,} parameters,"
        f" {processes} processes"
    ]
    if validation:
        shown = {
            key.removeprefix("validation/bits_per_byte/"): value
            for key, value in validation[-1].items()
            if key.startswith("validation/bits_per_byte/")
        }
        summary.append(
            "held-out bits per byte: " + ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        )
    packing = output_dir / PACKING_NAME
    if packing.is_file():
        for name, facts in json.loads(packing.read_text(encoding="utf-8")).items():
            metrics |= {f"train/packing/{name}/{fact}": value for fact, value in facts.items()}
            summary.append(
                f"{name}: {facts['conversations']:,} conversations packed whole, {facts['padding_share']:.1%} padding, "
                f"{facts['shortened']:,} shortened, {facts['left_out']:,} left out"
            )
    return StageResult(
        counts={
            "steps": latest["iteration"],
            "tokens": tokens,
            "parameters": spec.parameters,
            "processes": processes,
        },
        metrics=metrics,
        artifacts=(METRICS_NAME,),
        summary=tuple(summary),
    )
