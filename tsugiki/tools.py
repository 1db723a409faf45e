"""What can be done without an experiment: checkpoints, tokenizer reports, comparisons; paths as text or ``Path``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.config.load import RawConfig
from tsugiki.experiment.config.validate import validate

if TYPE_CHECKING:
    from tsugiki.evaluation.compare import Comparison

PathLike = Path | str


def import_checkpoint(
    hf_dir: PathLike,
    megatron_dir: PathLike,
    *,
    tokenizer_dir: PathLike | None = None,
    workers: int = 2,
    seed: int = 1234,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Write a Hugging Face model as a Megatron distributed checkpoint that loads under any layout.

    Args:
        hf_dir: directory with config.json and the weights.
        megatron_dir: new directory.
        tokenizer_dir: extended tokenizer whose ``pieces.tsv`` names the new rows; None keeps the vocabulary.
        workers: threads.
        seed: of random new rows.
        overwrite: replace ``megatron_dir``.
        settings: keys of the configuration's section ``graft``: ``init``, ``dtype``, …

    Returns:
        Contents of ``graft.json``.

    Raises:
        TsugikiError: see :func:`tsugiki.pretrain.convert.import_checkpoint`.
    """
    from tsugiki.pretrain import convert
    from tsugiki.pretrain.convert_config import GraftConfig

    return convert.import_checkpoint(
        Path(hf_dir),
        Path(megatron_dir),
        tokenizer_dir=_path(tokenizer_dir),
        config=validate(GraftConfig, RawConfig(settings, {})),
        workers=workers,
        seed=seed,
        overwrite=overwrite,
    )


def export_checkpoint(
    megatron_dir: PathLike,
    hf_dir: PathLike,
    *,
    tokenizer_dir: PathLike | None = None,
    base_dir: PathLike | None = None,
    workers: int = 2,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Write a Megatron checkpoint of any layout as a Hugging Face directory, and verify it.

    Args:
        megatron_dir: output of an import, a train directory, or one ``iter_...`` directory.
        hf_dir: new directory.
        tokenizer_dir: tokenizer of the model; needed unless ``verify=False``.
        base_dir: base model, for generation settings, chat template and licence.
        workers: threads.
        overwrite: replace ``hf_dir``.
        settings: keys of the configuration's section ``export``: ``iteration``, ``dtype``, ``verify``, …

    Returns:
        Counts, and under ``verification`` what was verified.

    Raises:
        TsugikiError: see :func:`tsugiki.pretrain.convert.export_checkpoint`.
    """
    from tsugiki.pretrain import convert
    from tsugiki.pretrain.convert_config import ExportConfig

    return convert.export_checkpoint(
        Path(megatron_dir),
        Path(hf_dir),
        tokenizer_dir=_path(tokenizer_dir),
        base_dir=_path(base_dir),
        config=validate(ExportConfig, RawConfig(settings, {})),
        workers=workers,
        overwrite=overwrite,
    )


def merge_checkpoints(recipe: PathLike, hf_dir: PathLike, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a merge of Hugging Face models as a Hugging Face directory.

    Args:
        recipe: YAML of a :class:`tsugiki.pretrain.merging.config.MergeConfig`.
        hf_dir: new directory.
        overwrite: replace ``hf_dir``.

    Returns:
        Counts: tensors, bytes, pieces of the result, how many of them each model has.

    Raises:
        TsugikiError: see :func:`tsugiki.pretrain.convert.merge_checkpoints`.
    """
    from tsugiki.experiment.config.validate import load_config
    from tsugiki.pretrain import convert
    from tsugiki.pretrain.merging.config import MergeConfig

    return convert.merge_checkpoints(
        load_config(MergeConfig, Path(recipe)), Path(hf_dir), overwrite=overwrite
    )


def verify_checkpoint(
    hf_dir: PathLike,
    megatron_dir: PathLike,
    *,
    iteration: int | None = None,
    logits: bool = False,
    texts: Sequence[str] = (),
    tokens: int = 512,
) -> dict[str, Any]:
    """Check bit for bit that a Hugging Face directory and a Megatron checkpoint are the same model.

    Args:
        hf_dir: Hugging Face directory.
        megatron_dir: as for :func:`export_checkpoint`.
        iteration: step of a training run; None is the last.
        logits: compare fp32 logits of transformers and Megatron too.
        texts: what to compare logits on; without any, ids that touch the whole vocabulary.
        tokens: how many tokens of it.

    Returns:
        ``weights`` (tensors and bytes compared) and, where asked for, ``logits``.

    Raises:
        CheckpointError: the first difference found, or a damaged side.
    """
    from tsugiki.pretrain import convert

    return convert.verify_checkpoint(
        Path(hf_dir), Path(megatron_dir), iteration=iteration, logits=logits, texts=texts, tokens=tokens
    )


def tokenizer_report(
    tokenizers: Mapping[str, PathLike],
    texts: Mapping[str, PathLike | Sequence[PathLike]],
    output_dir: PathLike,
    *,
    parallel: Mapping[str, PathLike] | None = None,
    model: PathLike | None = None,
    limit_bytes: int | None = None,
) -> dict[str, Any]:
    """Measure any tokenizers on any texts; write ``report.json``, ``.csv``, ``.md``, ``.html`` and figures.

    Args:
        tokenizers: name -> Hugging Face directory, ``tokenizer.json`` or SentencePiece ``.model``; the first is
            what the others are compared with.
        texts: language -> .txt or .jsonl files, also .gz and .zst.
        output_dir: made if needed.
        parallel: language -> file whose lines are aligned with those of ``en``, for parity.
        model: ``config.json`` (or its directory) of the model whose cost is predicted.
        limit_bytes: most bytes of each text.

    Returns:
        Contents of ``report.json``.

    Raises:
        ConfigError: nothing to measure, or parallel files that are not aligned.
        DataError: a tokenizer or text that cannot be read.
    """
    from tsugiki.tokenizer.report import run_report

    return run_report(
        {name: Path(path) for name, path in tokenizers.items()},
        {language: paths_of(files) for language, files in texts.items()},
        Path(output_dir),
        parallel={language: Path(path) for language, path in (parallel or {}).items()} or None,
        model=_path(model),
        limit_bytes=limit_bytes,
    )


def compare(run_dirs: Iterable[PathLike], output_dir: PathLike = "runs/compare") -> Comparison:
    """Put runs side by side in bits per byte; differences are to the first one.

    Args:
        run_dirs: two or more finished runs.
        output_dir: gets ``index.html``, ``comparison.json`` and ``comparison.md``.

    Raises:
        TsugikiError: see :func:`tsugiki.evaluation.compare.compare`.
    """
    from tsugiki.evaluation import compare as evaluation

    return evaluation.compare([Path(path) for path in run_dirs], Path(output_dir))


def paths_of(given: PathLike | Sequence[PathLike]) -> list[Path]:
    """One path or several."""
    return [Path(given)] if isinstance(given, (str, Path)) else [Path(path) for path in given]


def _path(given: PathLike | None) -> Path | None:
    return None if given is None else Path(given)
