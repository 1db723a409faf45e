"""The one list of reasons why a layout cannot run; the plan, the dry run, submission and training all ask it.

What each rule protects is said beside it; that nothing else stops Megatron is a property test
(``tests/distributed/test_layout_property.py``), which builds the models.
"""

from __future__ import annotations

from collections.abc import Iterator

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import ParallelConfig, TrainConfig
from tsugiki.pretrain.model.trainable import Selection
from tsugiki.pretrain.planning.divisions import (
    Problem,
    batch_problems,
    choices,
    divisors,
    process_problems,
    sequence_problems,
)


def layout_problems(
    config: TrainConfig,
    spec: ModelSpec,
    data_parallel_size: int | None = None,
    *,
    processes: int | None = None,
) -> list[Problem]:
    """Everything that is wrong with a division of a training over processes; empty when it can run.

    Args:
        config: the train section.
        spec: the model as it is trained, with the extended vocabulary and context.
        data_parallel_size: None is ``parallel.data``, else what the processes leave over, else 1.
        processes: processes that there are, where that is known.
    """
    parallel = config.parallel
    if data_parallel_size is None:
        data_parallel_size = parallel.data or (
            max(processes // parallel.model_processes, 1) if processes else 1
        )
    found = list(_model(parallel, spec))
    found += sequence_problems(config)
    found += batch_problems(config, data_parallel_size)
    found += _recomputation(config, spec)
    found += _phases(config, spec)
    if config.sequence_length > spec.max_positions:
        found.append(
            Problem(
                "sequences are longer than the model's positions", "train.sequence_length", config.sequence_length,
                f"at most {spec.max_positions} (graft.max_positions, else the base's max_position_embeddings)",
                f"set graft.max_positions: {config.sequence_length}, with graft.rope_theta or "
                "graft.rope_scaling where the base needs one, or shorten train.sequence_length",
            )
        )  # fmt: skip
    if processes is not None:
        found += process_problems(parallel, processes)
    there = processes or (parallel.data and parallel.model_processes * parallel.data)
    if there and config.profile is not None and max(config.profile.ranks) >= there:
        found.append(
            Problem(
                "a process to profile does not exist", "train.profile.ranks", config.profile.ranks,
                f"numbers from 0 to {there - 1}",
            )
        )  # fmt: skip
    return found


def _model(parallel: ParallelConfig, spec: ModelSpec) -> Iterator[Problem]:
    tensors = f"one of {choices(_tensor_choices(spec))}"
    for name, size in (
        ("attention heads", spec.heads),
        ("key/value heads", spec.kv_heads),
        ("rows of the feed-forward layer", spec.ffn_size),
    ):
        if size % parallel.tensor:
            what = f"tensor parallelism does not divide the model's {size} {name}"
            yield Problem(what, "train.parallel.tensor", parallel.tensor, tensors)
    if spec.vocabulary_size < 8 * parallel.tensor * parallel.tensor:
        # Every rank holds the same multiple of 8 rows: the last one would hold padding and nothing else.
        yield Problem(
            f"the vocabulary of {spec.vocabulary_size} is too small to divide", "train.parallel.tensor",
            parallel.tensor, "fewer tensor-parallel processes",
        )  # fmt: skip
    chunks = parallel.pipeline * (parallel.virtual_pipeline or 1)
    if spec.layers % chunks:
        stages = [
            size for size in divisors(spec.layers) if parallel.virtual_pipeline is None or size < spec.layers
        ]
        yield Problem(
            f"pipeline parallelism does not divide the model's {spec.layers} layers evenly",
            "train.parallel.pipeline",
            f"pipeline {parallel.pipeline}"
            + (f" x virtual_pipeline {parallel.virtual_pipeline}" if parallel.virtual_pipeline else ""),
            f"a product that is one of {choices(stages)}",
        )


def _recomputation(config: TrainConfig, spec: ModelSpec) -> Iterator[Problem]:
    # Megatron would take as many as there are, and the plan would count what is not.
    layers = spec.layers // (config.parallel.pipeline * (config.parallel.virtual_pipeline or 1))
    if config.recompute_layers is not None and config.recompute_layers > max(layers, 1):
        yield Problem(
            "more layers are to be recomputed than a chunk of the model has", "train.recompute_layers",
            config.recompute_layers, f"at most {layers}, or null for all",
        )  # fmt: skip


def _phases(config: TrainConfig, spec: ModelSpec) -> Iterator[Problem]:
    for phase in config.phases:
        try:
            Selection.parse(tuple(phase.trains), spec.layers)
        except ConfigError as error:
            yield Problem(error.what, str(error.where), error.got, str(error.expected))


def _tensor_choices(spec: ModelSpec) -> list[int]:
    return [size for size in divisors(spec.heads) if spec.kv_heads % size == 0 and spec.ffn_size % size == 0]
