"""What one rank knows of the run before anything is built: model, data, phases, length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.planning.schedule import Phase, phase_at, resolve_phases
from tsugiki.pretrain.runtime.job import TrainJob
from tsugiki.pretrain.runtime.world import World


@dataclass(frozen=True)
class Stretch:
    """Samples with the same mixture.

    Attributes:
        samples: how many.
        shares: of each source of the mixture, in its order; they add up to 1, some may be 0.
    """

    samples: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """The facts of a run.

    Attributes:
        job: what to train.
        world: this process.
        spec: the model.
        mixture: the data.
        steps: of the whole run.
        phases: in their order.
    """

    job: TrainJob
    world: World
    spec: ModelSpec
    mixture: Mixture
    steps: int
    phases: list[Phase]

    @classmethod
    def load(cls, job: TrainJob, world: World) -> Self:
        """Read model and mixture.

        Raises:
            DataError: tokens that the model does not have, or fewer than one step takes.
        """
        spec = ModelSpec.load(job.graft_dir)
        mixture = Mixture.load(job.tokens_dir)
        if mixture.vocabulary_size > spec.vocabulary_size:
            raise DataError(
                "the tokens have ids that the model does not have",
                where=job.tokens_dir,
                got=f"vocabulary of {mixture.vocabulary_size}",
                expected=f"at most {spec.vocabulary_size} as in {job.graft_dir / 'model.json'}",
                fix="run the graft stage with the tokenizer that encoded the tokens",
            )
        steps = total_steps(mixture, job.config.global_batch, job.config.sequence_length)
        tokens = steps * job.config.global_batch * job.config.sequence_length
        return cls(job, world, spec, mixture, steps, resolve_phases(job.config, tokens))

    @property
    def config(self) -> TrainConfig:
        """The train section."""
        return self.job.config

    @property
    def stretches(self) -> list[Stretch] | None:
        """Stretches with one mixture each; None where the mixture stays as it is."""
        return stretches_of(
            self.mixture,
            self.config.global_batch,
            self.config.sequence_length,
            self.steps * self.config.global_batch,
        )

    @property
    def token_files(self) -> list[Path]:
        """The files of token ids that training reads."""
        prefixes = [source.prefix for source in self.mixture.sources]
        return [self.job.tokens_dir / (prefix + suffix) for prefix in prefixes for suffix in (".bin", ".idx")]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch."""
        return self.config.global_batch * self.config.sequence_length

    def tokens(self, steps: int) -> int:
        """Tokens consumed after that many steps."""
        return steps * self.tokens_per_step

    def phase(self, steps: int) -> Phase:
        """The phase of the step that comes after that many."""
        return phase_at(self.phases, self.tokens(steps))


def total_steps(mixture: Mixture, global_batch: int, sequence_length: int) -> int:
    """Steps of a run: whole global batches in the mixture's tokens.

    Raises:
        DataError: the mixture is smaller than one global batch.
    """
    steps = mixture.total_tokens // (global_batch * sequence_length)
    if steps == 0:
        raise DataError(
            "the mixture is smaller than one training step",
            where="tokens.mixture.total_tokens",
            got=f"{mixture.total_tokens:,} tokens",
            expected=f"at least train.global_batch x train.sequence_length = "
            f"{global_batch * sequence_length:,}",
        )
    return steps


def stretches_of(
    mixture: Mixture, global_batch: int, sequence_length: int, samples: int
) -> list[Stretch] | None:
    """The stretches of a run with one mixture each; None where it does not change.

    A change takes effect with the first step that begins at its token or after it.
    """
    if not mixture.changes:
        return None
    starts = [0]
    for change in mixture.changes[1:]:
        starts.append(-(-change.from_tokens // (global_batch * sequence_length)) * global_batch)
    ends = [*starts[1:], samples]
    return [
        Stretch(
            min(end, samples) - start, tuple(change.shares.get(item.name, 0.0) for item in mixture.sources)
        )
        for change, start, end in zip(mixture.changes, starts, ends, strict=True)
        if start < min(end, samples)
    ]
