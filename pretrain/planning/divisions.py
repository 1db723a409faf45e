"""Division of processes, batch and sequence, which needs no model: checked by the configuration itself, too.

The configuration is known here by its shape alone, because it asks these rules of itself when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tsugiki.experiment.errors import ConfigError

_LARGEST_SHOWN = 64


class _Division(Protocol):
    """``train.parallel``."""

    @property
    def tensor(self) -> int: ...
    @property
    def pipeline(self) -> int: ...
    @property
    def virtual_pipeline(self) -> int | None: ...
    @property
    def context(self) -> int: ...
    @property
    def data(self) -> int | None: ...
    @property
    def sequence(self) -> bool: ...
    @property
    def model_processes(self) -> int: ...


class _Training(Protocol):
    """``train``."""

    @property
    def parallel(self) -> _Division: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def micro_batch(self) -> int: ...
    @property
    def global_batch(self) -> int: ...


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


def refuse(problems: Sequence[Problem]) -> None:
    """Raise what was found, all at once.

    Raises:
        ConfigError: there is a problem.
    """
    if len(problems) == 1:
        raise problems[0].error()
    if problems:
        raise ConfigError("\n".join(str(problem.error()) for problem in problems))


def process_problems(parallel: _Division, processes: int) -> list[Problem]:
    """Whether the processes are a multiple of the model-parallel size, and as many as ``parallel.data`` says."""
    model_parallel_size = parallel.model_processes
    expected = None if parallel.data is None else model_parallel_size * parallel.data
    if processes % model_parallel_size == 0 and expected in (None, processes):
        return []
    return [
        Problem(
            "the parallel layout does not fit the processes that were started", "train.parallel",
            f"{processes} processes",
            f"a multiple of tensor x pipeline x context = {model_parallel_size}"
            if expected is None
            else f"{expected} = tensor x pipeline x context x data",
            "set train.parallel.data to null to use all of them, or start as many as the layout needs",
        )
    ]  # fmt: skip


def sequence_problems(config: _Training) -> list[Problem]:
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


def batch_problems(config: _Training, data_parallel_size: int) -> list[Problem]:
    """Division of the global batch into forward passes."""
    parallel, per_pass = config.parallel, config.micro_batch * data_parallel_size
    if config.global_batch % per_pass:
        return [
            Problem(
                "the global batch is not a whole number of passes", "train.global_batch",
                f"{config.global_batch} with micro_batch {config.micro_batch}, data-parallel size {data_parallel_size}",
                f"must be a multiple of micro_batch x parallel.data = {per_pass}",
                f"set train.micro_batch to one of {choices(divisors(config.global_batch // data_parallel_size))}"
                if config.global_batch % data_parallel_size == 0
                else f"set the data-parallel size to one of {choices(divisors(config.global_batch))}",
            )
        ]  # fmt: skip
    micro_batches = config.global_batch // per_pass
    if parallel.virtual_pipeline and micro_batches % parallel.pipeline:
        return [
            Problem(
                "the interleaved pipeline takes micro batches in groups of the pipeline's size",
                "train.parallel.virtual_pipeline",
                f"{micro_batches} micro batches per step and data-parallel rank",
                f"a multiple of pipeline = {parallel.pipeline}",
                "change train.micro_batch or train.global_batch, or set virtual_pipeline: null",
            )
        ]  # fmt: skip
    return []


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def choices(sizes: list[int]) -> str:
    """For a message."""
    return ", ".join(str(size) for size in sizes if size <= _LARGEST_SHOWN)
