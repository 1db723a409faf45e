"""The graft stage: Hugging Face base -> Megatron checkpoint with the extended vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.pretrain.conversion.import_hf import REPORT_NAME, write_import
from tsugiki.pretrain.convert_config import GraftConfig


def run(
    config: GraftConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Write ``checkpoint/``, ``model.json``, ``hf_config.json`` and ``graft.json``.

    Args:
        config: the ``graft`` section.
        inputs: ``base`` (Hugging Face directory), ``tokenizer`` (its ``pieces.tsv`` names the
            added ids) and, for ``init: distillation``, ``corpus``.
        output_dir: exists; what an interrupted graft of the same left there is gone on with.
        context: seed and workers.

    Raises:
        CheckpointError: the base is damaged, incomplete or of an unknown architecture.
        ConfigError: a context that cannot be made of the base's; distillation of output rows that are
            the input's.
        DataError: tokenizer and matrix do not fit; no text to distil from.
        EnvironmentError_: not enough disk space; no such device.
    """
    report = write_import(
        inputs["base"],
        output_dir,
        tokenizer_dir=inputs["tokenizer"],
        config=config,
        corpus_dir=inputs.get("corpus"),
        workers=min(context.workers, 4),
        seed=context.seed,
    )
    summary = [
        f"{report['parameters']:,} parameters, {report['vocabulary_size']:,} vocabulary rows"
        f" ({report['base_rows']:,} in the base, {report['new_rows']:,} new)"
    ]
    for name, norms in report["row_norms"].items():
        summary.append(
            f"{name}: mean row length {norms['base_mean']:.3f} in the base, {norms['new_mean']:.3f} new"
        )
    if "distillation" in report:
        summary += _distillation_lines(report["distillation"])
    if report["max_positions"] != report["base_positions"]:
        summary.append(f"{report['max_positions']:,} positions ({report['base_positions']:,} in the base)")
    return StageResult(
        counts={key: report[key] for key in ("parameters", "vocabulary_size", "new_rows", "bytes")},
        metrics={"model/parameters": float(report["parameters"])},
        artifacts=(REPORT_NAME,),
        summary=tuple(summary),
    )


def _distillation_lines(done: Mapping[str, Any]) -> list[str]:
    loss = done["hidden_loss"]
    lines = [
        f"distillation: {done['pieces_trained']:,} pieces in {done['contexts']:,} contexts, {done['steps']:,}"
        f" steps; {done['pieces_without_context']:,} pieces in no context keep the mean",
        f"mean squared difference of hidden states {loss['before']:.4g} before, {loss['after']:.4g} after",
    ]
    if loss["after"] >= loss["before"]:
        lines.append("the trained rows are worse than the mean: lower graft.distillation.learning_rate")
    if "next_token_loss" in done:
        loss = done["next_token_loss"]
        lines.append(f"nats per predicted token {loss['before']:.3f} before, {loss['after']:.3f} after")
    return lines
