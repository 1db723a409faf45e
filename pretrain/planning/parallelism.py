"""Checks a training layout against the model, the batch and the sequence, before anything starts."""

from __future__ import annotations

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model_spec import ModelSpec
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.model.trainable import Selection

_LARGEST_SHOWN = 64


def check(config: TrainConfig, spec: ModelSpec, replicas: int) -> None:
    """Refuse a layout that Megatron could not run, naming the values that would do.

    Args:
        config: the train section.
        spec: the model.
        replicas: data-parallel replicas.

    Raises:
        ConfigError: the first thing that does not fit.
    """
    parallel = config.parallel
    for name, size in (("attention heads", spec.heads), ("key/value heads", spec.kv_heads)):
        if size % parallel.tensor:
            raise ConfigError(
                f"tensor parallelism does not divide the model's {size} {name}",
                where="train.parallel.tensor",
                got=parallel.tensor,
                expected=f"one of {_choices(_tensor_choices(spec))}",
            )
    if spec.ffn_size % parallel.tensor:
        raise ConfigError(
            f"tensor parallelism does not divide the feed-forward width {spec.ffn_size}",
            where="train.parallel.tensor",
            got=parallel.tensor,
            expected=f"one of {_choices(_tensor_choices(spec))}",
        )
    chunks = parallel.pipeline * (parallel.virtual_pipeline or 1)
    if spec.layers % chunks:
        stages = [
            size for size in _divisors(spec.layers) if parallel.virtual_pipeline is None or size < spec.layers
        ]
        raise ConfigError(
            f"pipeline parallelism does not divide the model's {spec.layers} layers evenly",
            where="train.parallel.pipeline",
            got=f"pipeline {parallel.pipeline}"
            + (f" x virtual_pipeline {parallel.virtual_pipeline}" if parallel.virtual_pipeline else ""),
            expected=f"a product that is one of {_choices(stages)}",
        )
    if spec.vocabulary_size < 8 * parallel.tensor * parallel.tensor:
        raise ConfigError(
            f"the vocabulary of {spec.vocabulary_size} is too small to divide",
            where="train.parallel.tensor",
            got=parallel.tensor,
            expected="fewer tensor-parallel processes",
        )
    _check_batch(config, spec, replicas)
    _check_phases(config, spec)
    if config.sequence_length > spec.max_positions:
        raise ConfigError(
            "sequences are longer than the model was made for",
            where="train.sequence_length",
            got=config.sequence_length,
            expected=f"at most {spec.max_positions} (graft.max_positions, else the base's "
            "max_position_embeddings)",
            fix=f"set graft.max_positions: {config.sequence_length}, with graft.rope_theta or "
            "graft.rope_scaling where the base needs one, or shorten train.sequence_length",
        )


def _check_batch(config: TrainConfig, spec: ModelSpec, replicas: int) -> None:
    per_pass = config.micro_batch * replicas
    if config.global_batch % per_pass:
        raise ConfigError(
            "the global batch is not a whole number of passes",
            where="train.global_batch",
            got=f"{config.global_batch} with micro_batch {config.micro_batch} and {replicas} replicas",
            expected=f"a multiple of micro_batch x replicas = {per_pass}",
            fix=f"set train.micro_batch to one of {_choices(_divisors(config.global_batch // replicas))}"
            if config.global_batch % replicas == 0
            else f"set the replicas to one of {_choices(_divisors(config.global_batch))}",
        )
    micro_batches = config.global_batch // per_pass
    if config.parallel.virtual_pipeline and micro_batches % config.parallel.pipeline:
        raise ConfigError(
            "the interleaved pipeline takes micro batches in groups of the pipeline's size",
            where="train.parallel.virtual_pipeline",
            got=f"{micro_batches} micro batches per step and replica",
            expected=f"a multiple of pipeline = {config.parallel.pipeline}",
            fix="change train.micro_batch or train.global_batch, or set virtual_pipeline: null",
        )


def _check_phases(config: TrainConfig, spec: ModelSpec) -> None:
    for phase in config.phases:
        Selection.parse(tuple(phase.trains), spec.layers)


def _tensor_choices(spec: ModelSpec) -> list[int]:
    return [size for size in _divisors(spec.heads) if spec.kv_heads % size == 0 and spec.ffn_size % size == 0]


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _choices(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes if size <= _LARGEST_SHOWN)
