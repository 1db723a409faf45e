"""The one list of reasons why a layout cannot run; the plan, the dry run, submission and training all ask it.

What each rule protects is said beside it; that nothing else stops Megatron is a property test
(``tests/distributed/test_layout_property.py``), which builds the models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model_spec import ModelSpec
from tsugiki.pretrain.model.trainable import Selection

if TYPE_CHECKING:
    from tsugiki.pretrain.config import ParallelConfig, TrainConfig

_LARGEST_SHOWN = 64


@dataclass(frozen=True)
class Problem:
    """Why a layout cannot run: what is wrong, where it is configured, what is there, and what would do."""

    what: str
    where: str
    got: object
    expected: str
    fix: str | None = None

    def error(self) -> ConfigError:
        """As an error."""
        return ConfigError(self.what, where=self.where, got=self.got, expected=self.expected, fix=self.fix)

    def __str__(self) -> str:
        """On one line."""
        return f"{self.what}: {self.where} is {self.got}, expected {self.expected}"


def layout_problems(
    config: TrainConfig, spec: ModelSpec, data: int | None = None, *, processes: int | None = None
) -> list[Problem]:
    """Everything that is wrong with a division of a training over processes; empty when it can run.

    Args:
        config: the train section.
        spec: the model as it is trained, with the extended vocabulary and context.
        data: data-parallel size; None is ``parallel.data``, else what the processes leave over, else 1.
        processes: processes that there are, where that is known.
    """
    parallel = config.parallel
    if data is None:
        data = parallel.data or (max(processes // parallel.model_processes, 1) if processes else 1)
    found = list(_model(parallel, spec))
    found += sequence_problems(config)
    found += batch_problems(config, data)
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
    return found


def refuse(problems: Sequence[Problem]) -> None:
    """Raise what was found, all at once.

    Raises:
        ConfigError: there is a problem.
    """
    if len(problems) == 1:
        raise problems[0].error()
    if problems:
        raise ConfigError("\n".join(str(problem.error()) for problem in problems))


def process_problems(parallel: ParallelConfig, processes: int) -> list[Problem]:
    """Whether the processes are a whole number of model copies, and as many as ``parallel.data`` says."""
    copies = parallel.model_processes
    expected = None if parallel.data is None else copies * parallel.data
    if processes % copies == 0 and expected in (None, processes):
        return []
    return [
        Problem(
            "the parallel layout does not fit the processes that were started", "train.parallel",
            f"{processes} processes",
            f"a multiple of tensor x pipeline x context = {copies}"
            if expected is None
            else f"{expected} = tensor x pipeline x context x data",
            "set train.parallel.data to null to use all of them, or start as many as the layout needs",
        )
    ]  # fmt: skip


def sequence_problems(config: TrainConfig) -> list[Problem]:
    """Division of a sequence over context-parallel ranks (two parts each) and, for norms, tensor-parallel ones."""
    parallel, found = config.parallel, []
    if parallel.context > 1 and config.sequence_length % (2 * parallel.context):
        found.append(
            Problem(
                "context parallelism does not divide the sequence", "train.sequence_length", config.sequence_length,
                f"must be a multiple of 2 x parallel.context = {2 * parallel.context}",
            )
        )  # fmt: skip
    share = config.sequence_length // parallel.context
    if parallel.sequence and share % parallel.tensor:
        found.append(
            Problem(
                "sequence parallelism does not divide the sequence", "train.sequence_length",
                f"{share} = sequence_length / parallel.context",
                f"must be a multiple of parallel.tensor = {parallel.tensor}",
            )
        )  # fmt: skip
    return found


def batch_problems(config: TrainConfig, data: int) -> list[Problem]:
    """Division of the global batch into forward passes."""
    parallel, per_pass = config.parallel, config.micro_batch * data
    if config.global_batch % per_pass:
        return [
            Problem(
                "the global batch is not a whole number of passes", "train.global_batch",
                f"{config.global_batch} with micro_batch {config.micro_batch} and {data} model copies",
                f"must be a multiple of micro_batch x parallel.data = {per_pass}",
                f"set train.micro_batch to one of {_choices(_divisors(config.global_batch // data))}"
                if config.global_batch % data == 0
                else f"set the model copies to one of {_choices(_divisors(config.global_batch))}",
            )
        ]  # fmt: skip
    micro_batches = config.global_batch // per_pass
    if parallel.virtual_pipeline and micro_batches % parallel.pipeline:
        return [
            Problem(
                "the interleaved pipeline takes micro batches in groups of the pipeline's size",
                "train.parallel.virtual_pipeline",
                f"{micro_batches} micro batches per step and model copy",
                f"a multiple of pipeline = {parallel.pipeline}",
                "change train.micro_batch or train.global_batch, or set virtual_pipeline: null",
            )
        ]  # fmt: skip
    return []


def _model(parallel: ParallelConfig, spec: ModelSpec) -> Iterator[Problem]:
    tensors = f"one of {_choices(_tensor_choices(spec))}"
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
            size for size in _divisors(spec.layers) if parallel.virtual_pipeline is None or size < spec.layers
        ]
        yield Problem(
            f"pipeline parallelism does not divide the model's {spec.layers} layers evenly",
            "train.parallel.pipeline",
            f"pipeline {parallel.pipeline}"
            + (f" x virtual_pipeline {parallel.virtual_pipeline}" if parallel.virtual_pipeline else ""),
            f"a product that is one of {_choices(stages)}",
        )


def _phases(config: TrainConfig, spec: ModelSpec) -> Iterator[Problem]:
    for phase in config.phases:
        try:
            Selection.parse(tuple(phase.trains), spec.layers)
        except ConfigError as error:
            yield Problem(error.what, str(error.where), error.got, str(error.expected))


def _tensor_choices(spec: ModelSpec) -> list[int]:
    return [size for size in _divisors(spec.heads) if spec.kv_heads % size == 0 and spec.ffn_size % size == 0]


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _choices(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes if size <= _LARGEST_SHOWN)
