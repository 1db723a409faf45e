"""The reference stage: log-probabilities of the answers of pairs by the weights that preference tuning begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.config.fingerprint import NotFingerprinted
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.planning.divisions import refuse
from tsugiki.pretrain.planning.problems import layout_problems
from tsugiki.pretrain.runtime.job import TrainJob
from tsugiki.pretrain.runtime.signals import StopRequest
from tsugiki.pretrain.runtime.world import World
from tsugiki.pretrain.train import run_ranks


class ReferenceConfig(StrictModel):
    """What of the train section decides the reference; the rest may change without reading the pairs again."""

    train: Annotated[TrainConfig, NotFingerprinted]
    """The section: layout, micro batch, backend."""
    sequence_length: int
    precision: Literal["fp32", "bf16", "fp8"]
    mask_end_of_document: bool

    @classmethod
    def of(cls, train: TrainConfig) -> Self:
        """Of a train section."""
        return cls(
            train=train,
            sequence_length=train.sequence_length,
            precision=train.precision,
            mask_end_of_document=train.mask_end_of_document,
        )


def run(
    config: ReferenceConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Read all pairs once with the graft's weights; a dataset that is written is not read again.

    Args:
        config: of the train section.
        inputs: ``graft`` and ``tokens``.
        output_dir: gets ``<prefix>.npy`` and ``reference.json``.
        context: seed.

    Raises:
        ConfigError: a layout that does not fit.
        DataError: there are no pairs.
        Interrupted: asked to stop.
    """
    from tsugiki.pretrain.training.preference.reference import Reference, load, mark, pair_prefixes

    graft, tokens = inputs["graft"], inputs["tokens"]
    prefixes = list(pair_prefixes(Mixture.load(tokens)))
    if not prefixes:
        raise DataError(
            "no pairs to compare with a reference", where=tokens / Mixture.file_name,
            expected="a source of `kind: preference`", fix="add one to corpus.sources",
        )  # fmt: skip
    world = World.from_environment()
    refuse(
        layout_problems(config.train, ModelSpec.load(graft), processes=None if world is None else world.size)
    )
    job = TrainJob(
        config=config.train,
        graft_dir=graft.resolve(),
        tokens_dir=tokens.resolve(),
        output_dir=output_dir.resolve(),
        seed=context.seed,
        purpose="reference",
    )
    job.work_dir.mkdir(parents=True, exist_ok=True)
    with StopRequest() as stop:
        run_ranks(job, world, stop)
    if world is not None and world.rank > 0:
        return StageResult()
    Reference(model=mark(graft), tokens=mark(tokens)).save(output_dir)
    pairs = {prefix: load(output_dir, prefix) for prefix in prefixes}
    missing = {prefix: int((found != found).any(axis=1).sum()) for prefix, found in pairs.items()}
    return StageResult(
        counts={
            "pairs": sum(map(len, pairs.values())),
            "pairs_that_do_not_fit": sum(missing.values()),
        },
        artifacts=(Reference.file_name,),
        summary=tuple(
            f"{prefix}: {len(found):,} pairs, {missing[prefix]:,} too long for a sequence of "
            f"{config.sequence_length:,} tokens"
            for prefix, found in pairs.items()
        ),
    )
