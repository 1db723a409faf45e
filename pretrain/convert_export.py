"""Megatron distributed checkpoint -> Hugging Face directory, one tensor of one layer at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_
from pretrain.convert_config import WeightDtype
from pretrain.convert_import import CHECKPOINT_NAME, DTYPES_KEY, HF_CONFIG_NAME
from pretrain.dist_files import CONFIG_NAME, METADATA_NAME, DistReader
from pretrain.hf_files import HfWriter, byte_progress, dtype_name, torch_dtype, write_json
from pretrain.new_rows import tokenizer_size
from pretrain.spec import SPEC_NAME, ModelSpec
from pretrain.weights import Weight, hf_tensors, split, weight_table

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
_CARRIED_FROM_BASE = ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md")
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint with what describes it.

    Attributes:
        checkpoint: the ``torch_dist`` directory.
        spec: its architecture.
        hf_config: the Hugging Face configuration it came with.
        iteration: step of a training checkpoint; None for an imported base.
        facts: ``checkpoint.json`` of a training checkpoint (tokens, layout), else empty.
    """

    checkpoint: Path
    spec: ModelSpec
    hf_config: dict[str, Any]
    iteration: int | None
    facts: dict[str, Any]

    def dtype_of(self, name: str, asked: WeightDtype | None) -> str | None:
        """Type to export a tensor in: as asked, or as the base had it; None when neither is known."""
        types = self.hf_config.get(DTYPES_KEY, {})
        if asked is not None:
            return asked
        found = types.get("exceptions", {}).get(name, types.get("default"))
        return None if found is None else str(found)


def find_checkpoint(path: Path, iteration: int | None = None) -> TrainedModel:
    """The checkpoint that a path means.

    Args:
        path: an imported model (``checkpoint/`` in it), a train directory (``checkpoints/`` in it),
            its ``checkpoints``, or one ``iter_...`` directory.
        iteration: step wanted of a training run; None is the last whole one.

    Raises:
        ConfigError: the iteration does not exist.
        CheckpointError: no whole checkpoint there.
    """
    if (path / METADATA_NAME).is_file():
        checkpoint = path
    elif (path / CHECKPOINT_NAME / CONFIG_NAME).is_file():
        checkpoint = path / CHECKPOINT_NAME
    else:
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        checkpoint = _iteration_directory(folder, iteration)
    facts: dict[str, Any] = {}
    if checkpoint.name.startswith("iter_"):
        mark = checkpoint / "checkpoint.json"
        if not mark.is_file():
            raise CheckpointError(
                "the checkpoint is not whole", where=checkpoint, expected=mark.name,
                fix="training was interrupted while saving it; use an earlier one",
            )  # fmt: skip
        facts = json.loads(mark.read_text(encoding="utf-8"))
    for home in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        if (home / SPEC_NAME).is_file():
            break
    else:
        raise CheckpointError(
            "no model description beside the checkpoint", where=checkpoint,
            expected=f"{SPEC_NAME} and {HF_CONFIG_NAME} in it or in a folder above",
        )  # fmt: skip
    try:
        hf_config = json.loads((home / HF_CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "unreadable model configuration", where=home / HF_CONFIG_NAME, got=error
        ) from error
    number = checkpoint.name.removeprefix("iter_")
    return TrainedModel(
        checkpoint, ModelSpec.load(home), hf_config, int(number) if number.isdigit() else None, facts
    )


def _iteration_directory(folder: Path, iteration: int | None) -> Path:
    whole = sorted(
        entry for entry in folder.glob("iter_*") if entry.is_dir() and (entry / "checkpoint.json").is_file()
    )
    if not whole:
        raise CheckpointError(
            "no checkpoint here", where=folder,
            expected="a whole iter_... directory, or the output of an import",
        )  # fmt: skip
    if iteration is None:
        return whole[-1]
    for entry in whole:
        if int(entry.name.removeprefix("iter_")) == iteration:
            return entry
    steps = ", ".join(str(int(entry.name.removeprefix("iter_"))) for entry in whole)
    raise ConfigError("no such iteration", where=folder, got=iteration, expected=f"one of {steps}")


def write_export(
    model: TrainedModel,
    output_dir: Path,
    *,
    tokenizer_dir: Path | None,
    base_dir: Path | None,
    dtype: WeightDtype | None,
    shard_bytes: int,
    workers: int = 2,
) -> dict[str, Any]:
    """Write weights, configuration and tokenizer into an existing directory; returns the counts."""
    spec = model.spec
    reader = DistReader(model.checkpoint)
    _check_tensors(reader, spec)
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
    writer = HfWriter(output_dir, planned, shard_bytes)
    free = shutil.disk_usage(output_dir).free
    if writer.total_bytes > free:
        raise EnvironmentError_(
            "not enough disk space for the exported model",
            where=output_dir,
            got=f"{free / 1e9:.1f} GB free",
            expected=f"{writer.total_bytes / 1e9:.1f} GB",
            fix="free space, or export to another disk",
        )
    with writer, byte_progress("export", writer.total_bytes) as advance, ThreadPoolExecutor(workers) as pool:

        def convert(unit: tuple[Weight, int, int, int]) -> None:
            weight, layer, start, stop = unit
            for name, tensor in read_parts(reader, spec, weight, layer, start, stop):
                advance(writer.write(name, tensor, start))

        for _ in pool.map(convert, units(spec)):
            pass
    reader.close()
    writer.write_index()
    most = max((str(dtype) for _, _, dtype in planned), key=[dtype for _, _, dtype in planned].count)
    write_json(output_dir / "config.json", exported_config(model, most))
    _write_generation_config(output_dir, model.hf_config, base_dir)
    _copy_tokenizer(output_dir, tokenizer_dir, base_dir)
    return {
        "parameters": spec.parameters,
        "vocabulary_size": spec.vocabulary_size,
        "bytes": writer.total_bytes,
        "files": len(writer.files),
        "dtype": most,
    }


def units(spec: ModelSpec) -> list[tuple[Weight, int, int, int]]:
    """(weight, layer, start, stop) of everything to convert; vocabulary matrices in blocks of rows."""
    result: list[tuple[Weight, int, int, int]] = []
    for weight in weight_table(spec):
        rows = weight.shape(spec)[0]
        step = max(1, _BLOCK_BYTES // (4 * spec.hidden_size)) if weight.vocabulary else rows
        for layer in weight.layers(spec):
            result.extend((weight, layer, row, min(row + step, rows)) for row in range(0, rows, step))
    return result


def read_parts(
    reader: DistReader, spec: ModelSpec, weight: Weight, layer: int, start: int, stop: int
) -> Sequence[tuple[str, Any]]:
    """Hugging Face names and tensors of rows of a Megatron tensor, in the checkpoint's type."""
    bounds = [(start, stop), *((0, size) for size in weight.shape(spec)[1:])]
    if weight.per_layer:
        tensor = reader.read(weight.megatron, [(layer, layer + 1), *bounds])[0]
    else:
        tensor = reader.read(weight.megatron, bounds)
    return list(zip(weight.names(layer), split(weight, tensor, spec), strict=True))


def _check_tensors(reader: DistReader, spec: ModelSpec) -> None:
    """Every weight is there with the shape the description implies; more vocabulary rows are padding."""
    for weight in weight_table(spec):
        expected = weight.global_shape(spec)
        found = reader.tensors.get(weight.megatron)
        if found is None:
            raise CheckpointError(
                "tensor missing from the checkpoint", where=f"{reader.directory}: {weight.megatron}",
                expected=list(expected), fix="model.json belongs to another model, or the save was partial",
            )  # fmt: skip
        padded = weight.vocabulary and found.shape[0] >= expected[0] and found.shape[1:] == expected[1:]
        if found.shape != expected and not padded:
            raise CheckpointError(
                "tensor of another shape than the model description",
                where=f"{reader.directory}: {weight.megatron}",
                got=list(found.shape),
                expected=list(expected),
            )
    known = {weight.megatron for weight in weight_table(spec)}
    left = [key for key in reader.tensors if key not in known and not key.startswith("optimizer.")]
    if left:
        raise CheckpointError(
            f"{len(left)} tensors of the checkpoint have no place in a {spec.family}",
            where=reader.directory,
            got=", ".join(f"{key} {list(reader.tensors[key].shape)}" for key in left[:5]),
        )


def exported_config(model: TrainedModel, dtype: str) -> dict[str, Any]:
    """config.json of the result: the base's, with the vocabulary and the type of the weights."""
    config = {key: value for key, value in model.hf_config.items() if key != DTYPES_KEY}
    config["vocab_size"] = model.spec.vocabulary_size
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[key] = str(torch_dtype(dtype)).removeprefix("torch.")
    return config


def _write_generation_config(output_dir: Path, hf_config: dict[str, Any], base_dir: Path | None) -> None:
    """The base's generation settings, or the token ids of its configuration."""
    path = base_dir / "generation_config.json" if base_dir is not None else None
    if path is not None and path.is_file():
        shutil.copyfile(path, output_dir / path.name)
        return
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {key: hf_config[key] for key in keys if hf_config.get(key) is not None}
    write_json(output_dir / "generation_config.json", {"_from_model_config": True, **ids})


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
