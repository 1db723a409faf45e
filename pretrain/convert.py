"""The conversion as commands: import, export, verify.

Results appear under their final name only when they are whole: work goes on in a sibling
``NAME.partial``. After an interruption the same command continues there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError, DataError, os_error
from tsugiki.experiment.run.folders import (
    KEY_NAME,
    bring_back,
    refuse_other_than,
    refuse_overlap,
    refuse_stage_folder,
    refuse_unusable,
    replace_folder,
)
from tsugiki.experiment.run.graph import WORK_NAME
from tsugiki.pretrain.convert_config import ExportConfig, GraftConfig
from tsugiki.pretrain.formats.journal import JOURNAL_NAME
from tsugiki.pretrain.merging.config import MergeConfig

_MODELS = ("graft.json model.json", "config.json *.safetensors", "config.json *.bin")
"""What a folder has that ``--overwrite`` may replace: an imported checkpoint, a Hugging Face model."""

_EARLIER = f"{WORK_NAME}/replaced"
"""Where an output waits that is being replaced, below the folder of the unfinished one."""


def import_checkpoint(
    hf_dir: Path,
    output_dir: Path,
    *,
    tokenizer_dir: Path | None = None,
    config: GraftConfig | None = None,
    workers: int = 2,
    seed: int = 1234,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a Megatron distributed checkpoint of a Hugging Face model.

    Memory stays at a few blocks of 64 MB or one tensor of a layer for each worker, whatever the
    size of the model.

    Args:
        hf_dir: directory with config.json and the weights.
        output_dir: gets ``checkpoint/``, ``model.json``, ``hf_config.json`` and ``graft.json``.
        tokenizer_dir: extended tokenizer; its ``pieces.tsv`` names the rows to add. None keeps the
            vocabulary.
        config: how new rows start, and in which type to write.
        workers: threads.
        seed: of random new rows.
        overwrite: replace ``output_dir`` if it exists.

    Returns:
        Contents of ``graft.json``.

    Raises:
        ConfigError: ``output_dir`` exists; it or its ``.partial`` is not ours to replace; it holds an input, or lies in
            one.
        CheckpointError: the model is damaged, incomplete or of an unknown architecture.
        DataError: tokenizer and matrix do not fit.
        EnvironmentError_: not enough disk space.
    """
    from tsugiki.pretrain.conversion.import_hf import write_import

    with _whole_or_nothing(output_dir, [hf_dir, tokenizer_dir], overwrite) as target:
        return write_import(
            hf_dir,
            target,
            tokenizer_dir=tokenizer_dir,
            config=config or GraftConfig(),
            workers=workers,
            seed=seed,
        )


def export_checkpoint(
    megatron_dir: Path,
    output_dir: Path,
    *,
    tokenizer_dir: Path | None = None,
    base_dir: Path | None = None,
    config: ExportConfig | None = None,
    workers: int = 2,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a Hugging Face directory from an imported or trained checkpoint of any layout.

    Needs no process group, no GPU and no model in memory; optimizer state beside the weights is
    not read. May run while training goes on: a checkpoint that training deletes meanwhile is given up for
    its newest one.

    Args:
        megatron_dir: output of an import, a train directory, or one ``iter_...`` directory.
        output_dir: gets safetensors, configuration, tokenizer and model card.
        tokenizer_dir: tokenizer of the model; None leaves the tokenizer out, and verification is impossible.
        base_dir: base model, for generation settings, chat template and licence.
        config: iteration, type, size of files, verification.
        workers: threads.
        overwrite: replace ``output_dir`` if it exists.

    Returns:
        Counts, and under ``verification`` what was verified.

    Raises:
        ConfigError: ``output_dir`` exists; it or its ``.partial`` is not ours to replace; it holds an input, or lies in
            one; there is no such iteration, or verification without a tokenizer.
        CheckpointError: the checkpoint is damaged or deleted meanwhile, or verification failed.
        DataError: tokenizer and matrices differ in size.
        EnvironmentError_: not enough disk space.
    """
    from tsugiki.pretrain.conversion.export_hf import export_and_verify
    from tsugiki.pretrain.conversion.model_card import write_card

    settings = config or ExportConfig()
    if settings.verify and tokenizer_dir is None:
        raise ConfigError(
            "a model without its tokenizer cannot be verified",
            where=output_dir,
            expected="the tokenizer directory whose ids the model was trained on",
            fix="say --tokenizer DIR, or --no-verify to write the weights alone",
        )
    with _whole_or_nothing(output_dir, [megatron_dir, tokenizer_dir, base_dir], overwrite) as target:
        model, counts, verification = export_and_verify(
            megatron_dir, target, settings, tokenizer_dir=tokenizer_dir, base_dir=base_dir, workers=workers
        )
        given = {"base": base_dir, "tokenizer": tokenizer_dir}
        inputs = {key: path for key, path in given.items() if path is not None}
        write_card(target, settings, model, inputs, output_dir.name, verification)
    return {**counts, "verification": verification}


def merge_checkpoints(config: MergeConfig, output_dir: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Merge Hugging Face models into a new directory.

    Args:
        config: the merge.
        output_dir: new directory.
        overwrite: replace it.

    Returns:
        Counts.

    Raises:
        ConfigError: as :func:`import_checkpoint`.
        CheckpointError: models of different architectures, or damaged ones.
        DataError: a tokenizer that cannot be read.
    """
    from tsugiki.pretrain.merging.folders import merge_folders

    with _whole_or_nothing(output_dir, [expand_path(path) for path in config.folders], overwrite) as target:
        (target / JOURNAL_NAME).unlink(missing_ok=True)  # of a conversion that was interrupted here
        return merge_folders(config, target)


def verify_checkpoint(
    hf_dir: Path,
    megatron_dir: Path,
    *,
    iteration: int | None = None,
    logits: bool = False,
    texts: Sequence[str] = (),
    tokens: int = 512,
    tolerance: float = 1e-4,
) -> dict[str, Any]:
    """Check that a Hugging Face directory and a Megatron checkpoint are the same model.

    Args:
        hf_dir: Hugging Face directory.
        megatron_dir: see :func:`export_checkpoint`.
        iteration: step of a training run; None is the last.
        logits: compare fp32 logits of transformers and Megatron too.
        texts: what to compare logits on; without any, ids that touch the whole vocabulary.
        tokens: how many tokens of it.
        tolerance: largest absolute difference of a logit that passes.

    Returns:
        ``weights`` (tensors and bytes compared) and, with ``logits``, the figures of
        :class:`tsugiki.pretrain.conversion.verify.LogitsReport`.

    Raises:
        ConfigError: no such iteration.
        CheckpointError: the first difference found, or a damaged side.
        DataError: the texts hold nothing, or the tokenizer cannot be read.
    """
    from tsugiki.pretrain.conversion.trained_model import find_checkpoint
    from tsugiki.pretrain.conversion.verify import (
        check_logits,
        encode_text,
        pseudo_random_ids,
        verify_logits,
        verify_weights,
    )

    model = find_checkpoint(megatron_dir, iteration)
    result: dict[str, Any] = {"weights": verify_weights(hf_dir, model)}
    if logits:
        sequences = encode_text(hf_dir, texts, tokens)
        if texts and not sequences:
            raise DataError("no text to compare logits on", got=f"{len(texts)} empty samples")
        sequences = sequences or pseudo_random_ids(model.spec.vocabulary_size, tokens)
        report = verify_logits(hf_dir, model, sequences)
        check_logits(report, tolerance, hf_dir)
        result["logits"] = asdict(report)
    return result


@contextmanager
def _whole_or_nothing(output_dir: Path, inputs: Sequence[Path | None], overwrite: bool) -> Iterator[Path]:
    target = output_dir.with_name(output_dir.name + ".partial")
    for written in (output_dir, target):
        refuse_overlap([path for path in inputs if path is not None], written)
    refuse_unusable(output_dir, "the output directory")
    _refuse_foreign_partial(target)
    _bring_back(target, output_dir)
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise ConfigError(
            "the output directory exists and is not empty",
            where=output_dir,
            got="files in it",
            expected="a new directory",
            fix="choose another one, or say --overwrite",
        )
    refuse_stage_folder(output_dir, "the output directory")
    refuse_other_than(output_dir, "a model directory", _MODELS)
    try:
        if not (target / JOURNAL_NAME).is_file():
            shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
        yield target
        _put_in_place(target, output_dir)
    except OSError as error:
        raise os_error("the conversion", target, error) from error
    finally:
        if target.is_dir() and not (target / JOURNAL_NAME).is_file():
            shutil.rmtree(target, ignore_errors=True)


def _refuse_foreign_partial(target: Path) -> None:
    """Only what a conversion left may be continued or removed: it has a journal, or nothing at all."""
    refuse_unusable(target, "the folder of the unfinished conversion")
    if not target.is_dir() or not any(path.is_file() for path in target.rglob("*")):
        return
    # A stage's unfinished folder has a journal too, if the stage converts; its key tells it apart.
    if (target / JOURNAL_NAME).is_file() and not (target / KEY_NAME).exists():
        return
    raise ConfigError(
        "the folder for the unfinished conversion is used by something else",
        where=target,
        got="a stage of a run that is not finished"
        if (target / KEY_NAME).exists()
        else "files of another origin",
        expected="no such folder, or one that an interrupted conversion left",
        fix="choose another output, or move the folder away",
    )


def _bring_back(target: Path, output_dir: Path) -> None:
    """An earlier output that was being replaced when a conversion was killed gets its place again."""
    earlier = target / _EARLIER
    bring_back(earlier, output_dir)
    if earlier.exists():
        raise ConfigError(
            "an earlier output was left by a killed conversion, and its place is taken",
            where=output_dir,
            got=f"the earlier one is {earlier}",
            expected="one of them",
            fix="move the one that is to be kept elsewhere, and remove the other",
        )


def _put_in_place(target: Path, output_dir: Path) -> None:
    """Let the result take its name; what it replaces leaves with the unfinished work."""
    (target / WORK_NAME).mkdir(exist_ok=True)
    replace_folder(target, output_dir, target / _EARLIER)
    shutil.rmtree(output_dir / WORK_NAME, ignore_errors=True)
