"""Megatron distributed checkpoint -> Hugging Face directory, one tensor of one layer at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import CheckpointError, DataError
from tsugiki.experiment.files import read_json, write_json_atomically
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.run.sums import sums_compared
from tsugiki.experiment.text.tokenizer_files import tokenizer_size
from tsugiki.pretrain.conversion.import_hf import DTYPES_KEY, for_each, require_space
from tsugiki.pretrain.conversion.trained_model import (
    TrainedModel,
    Unit,
    check_tensors,
    read_parts,
    units,
    while_whole,
)
from tsugiki.pretrain.conversion.verify import VERIFY_NAME, verify_export
from tsugiki.pretrain.conversion.weights import hf_tensors, weight_table
from tsugiki.pretrain.convert_config import ExportConfig, SamplingConfig, WeightDtype
from tsugiki.pretrain.formats.byte_ranges import byte_progress, copy_range
from tsugiki.pretrain.formats.journal import JOURNAL_NAME, LAYOUT, Journal, file_states
from tsugiki.pretrain.formats.safetensors_files import HfWriter, dtype_name, torch_dtype
from tsugiki.pretrain.formats.torch_dist_reader import DistReader

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_SAMPLING_KEYS = ("do_sample", *SamplingConfig.model_fields)
_CARRIED_FROM_BASE = ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md")


def write_export(
    model: TrainedModel,
    output_dir: Path,
    *,
    tokenizer_dir: Path | None,
    base_dir: Path | None,
    dtype: WeightDtype | None,
    shard_bytes: int,
    workers: int = 2,
    sampling: SamplingConfig | None = None,
) -> dict[str, Any]:
    """Write weights, configuration and tokenizer into an existing directory; returns the counts."""
    spec = model.spec
    reader = DistReader(model.checkpoint)
    check_tensors(reader, spec)
    if tokenizer_dir is not None and (size := tokenizer_size(tokenizer_dir)) != spec.vocabulary_size:
        raise DataError(
            "tokenizer and matrices differ in size",
            where=tokenizer_dir,
            got=f"{size} ids",
            expected=f"{spec.vocabulary_size} rows of embedding.word_embeddings.weight",
            fix="export with the tokenizer the model was trained with",
        )
    stored = {
        name: dtype_name(reader.tensors[weight.megatron].dtype)
        for weight in weight_table(spec)
        for layer in weight.layers(spec)
        for name in weight.names(layer)
    }
    planned = [(name, shape, model.dtype_of(name, dtype) or stored[name]) for name, shape in hf_tensors(spec)]
    journal = Journal(output_dir, _request(model, planned, shard_bytes))
    writer = HfWriter(output_dir, planned, shard_bytes, laid_out=LAYOUT in journal.done)
    with journal:
        require_space(output_dir, writer.total_bytes)
        with (
            writer,
            sums_compared(model.files, damaged=journal.forget),
            byte_progress("export", writer.total_bytes) as advance,
            ThreadPoolExecutor(max(1, workers)) as pool,
        ):
            journal.record(LAYOUT)

            def convert(numbered: tuple[int, Unit]) -> None:
                number, unit = numbered
                if str(number) not in journal.done:
                    _write_unit(reader, spec, unit, writer)
                    journal.record(str(number))
                advance(unit_bytes(unit, spec, writer))

            for_each(pool, convert, enumerate(units(spec)))
    reader.close()
    writer.write_index()
    most = max((str(dtype) for _, _, dtype in planned), key=[dtype for _, _, dtype in planned].count)
    write_json_atomically(output_dir / "config.json", exported_config(model, most))
    _write_generation_config(output_dir, model.hf_config, base_dir, sampling)
    _copy_tokenizer(output_dir, tokenizer_dir, base_dir)
    return {
        "parameters": spec.parameters,
        "vocabulary_size": spec.vocabulary_size,
        "bytes": writer.total_bytes,
        "files": len(writer.files),
        "dtype": most,
    }


def export_and_verify(
    source: Path,
    output_dir: Path,
    config: ExportConfig,
    *,
    tokenizer_dir: Path | None,
    base_dir: Path | None,
    texts: Callable[[], Iterable[str]] = tuple,
    workers: int = 2,
) -> tuple[TrainedModel, dict[str, Any], dict[str, Any]]:
    """Write an export into an existing directory, going on with what an interrupted one left there, and verify it.

    Args:
        source: see :func:`tsugiki.pretrain.conversion.trained_model.find_checkpoint`; training may go on there.
        output_dir: exists; what no interrupted export of the same left is removed.
        config: iteration, type, size of files, verification.
        tokenizer_dir: the model's tokenizer.
        base_dir: for generation settings, chat template and licence.
        texts: gives text to verify on.
        workers: threads.

    Returns:
        The checkpoint that was exported, counts, and what the verification found ({} without one).

    Raises:
        CheckpointError: damaged, deleted meanwhile, or the verification failed; then nothing is kept for
            another attempt.
        ConfigError: the iteration does not exist.
        DataError: tokenizer and matrices differ in size.
        EnvironmentError_: not enough disk space.
    """

    def export(model: TrainedModel) -> tuple[TrainedModel, dict[str, Any], dict[str, Any]]:
        counts = write_export(
            model, output_dir, tokenizer_dir=tokenizer_dir, base_dir=base_dir, dtype=config.dtype,
            shard_bytes=config.shard_bytes, workers=workers, sampling=config.sampling,
        )  # fmt: skip
        if not config.verify:
            return model, counts, {}
        try:
            found = verify_export(
                output_dir, model, texts(), tokens=config.verify_tokens,
                tolerance=config.verify_tolerance, report_path=output_dir / VERIFY_NAME,
            )  # fmt: skip
        except CheckpointError:
            # Whatever is wrong may lie in what was written.
            (output_dir / JOURNAL_NAME).unlink(missing_ok=True)
            raise
        return model, counts, found

    return while_whole(source, config.iteration, export)


def unit_bytes(unit: Unit, spec: ModelSpec, writer: HfWriter) -> int:
    """Bytes a unit has in the exported files."""
    names = unit.weight.names(unit.layer)
    if unit.weight.vocabulary:
        return (unit.stop - unit.start) * writer.entry(names[0]).row_bytes
    return sum(writer.entry(name).size_bytes for name in names)


def _write_unit(reader: DistReader, spec: ModelSpec, unit: Unit, writer: HfWriter) -> None:
    """Bring a unit to its place: in the kernel where type and layout allow, else through memory."""
    weight, layer = unit.weight, unit.layer
    names = weight.names(layer)
    same_type = all(
        torch_dtype(writer.entry(name).dtype) == reader.tensors[weight.megatron].dtype for name in names
    )
    stacked = layer if weight.per_layer else None
    ranges = reader.row_ranges(weight.megatron, stacked, unit.start, unit.stop) if same_type else None
    if ranges is None:
        for name, tensor in read_parts(reader, spec, weight, layer, unit.start, unit.stop):
            writer.write(name, tensor, unit.start)
        return
    for run in weight.rows(spec):
        entry = writer.entry(names[run.part])
        for saved in ranges:
            first = max(run.start, saved.start)
            last = min(run.start + run.count, saved.start + saved.count)
            if first < last:
                copy_range(
                    reader.descriptor(saved.file),
                    saved.position + (first - saved.start) * saved.row_bytes,
                    writer.descriptor(entry.name),
                    entry.offset + (first - run.start + run.part_start) * saved.row_bytes,
                    (last - first) * saved.row_bytes,
                    saved.file,
                )


def _request(
    model: TrainedModel, planned: Sequence[tuple[str, tuple[int, ...], str]], shard_bytes: int
) -> dict[str, Any]:
    """What the weights of the result depend on, for resuming."""
    files = [path for path in model.files if path.parent == model.checkpoint]
    return {"format": 1, "files": file_states(files), "tensors": planned, "shard_bytes": shard_bytes}


def exported_config(model: TrainedModel, dtype: str) -> dict[str, Any]:
    """config.json of the result: the base's, with the vocabulary and the type of the weights.

    Rotary positions and the type are written under the names of transformers 4 and of 5: a reader takes the names
    that it knows, and its own default (a base of 10,000) where there is none.
    """
    config = {key: value for key, value in model.hf_config.items() if key != DTYPES_KEY}
    config["vocab_size"] = model.spec.vocabulary_size
    config["torch_dtype"] = config["dtype"] = str(torch_dtype(dtype)).removeprefix("torch.")
    base, scaling = model.spec.rope_theta, model.spec.rope_scaling
    config["rope_theta"], config["rope_scaling"] = base, scaling
    whole_heads = {
        k: v for k, v in (config.get("rope_parameters") or {}).items() if k == "partial_rotary_factor"
    }
    config["rope_parameters"] = {**whole_heads, "rope_type": "default", **(scaling or {}), "rope_theta": base}
    return config


def _write_generation_config(
    output_dir: Path, hf_config: dict[str, Any], base_dir: Path | None, sampling: SamplingConfig | None
) -> None:
    """The base's generation settings, or the token ids of its configuration; with the sampling that is asked for."""
    path = base_dir / "generation_config.json" if base_dir is not None else None
    if path is not None and path.is_file():
        if sampling is None:
            shutil.copyfile(path, output_dir / path.name)
        else:
            # All or nothing of the base's: its top_k would cut what another temperature is meant to draw.
            kept = {key: value for key, value in read_json(path).items() if key not in _SAMPLING_KEYS}
            write_json_atomically(output_dir / path.name, kept | sampling.settings())
        return
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {key: hf_config[key] for key in keys if hf_config.get(key) is not None}
    written = {"_from_model_config": True} if sampling is None else sampling.settings()
    write_json_atomically(output_dir / "generation_config.json", written | ids)


def _copy_tokenizer(output_dir: Path, tokenizer_dir: Path | None, base_dir: Path | None) -> None:
    if tokenizer_dir is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, output_dir / name)
    if base_dir is None:
        return
    template = "chat_template.jinja"
    if not (output_dir / template).exists() and (base_dir / template).is_file():
        shutil.copyfile(base_dir / template, output_dir / template)
    for name in _CARRIED_FROM_BASE:
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, output_dir / name)
