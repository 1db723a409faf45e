"""A trained checkpoint: which one a path means, what describes it, and its tensors by their Hugging Face names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tsugiki.experiment.errors import CheckpointError, ConfigError
from tsugiki.experiment.model.model_spec import SPEC_NAME, ModelSpec
from tsugiki.pretrain.checkpoint.names import MARK_NAME, complete_checkpoints, iteration_of
from tsugiki.pretrain.conversion.hf_checkpoint import row_blocks
from tsugiki.pretrain.conversion.import_hf import CHECKPOINT_NAME, DTYPES_KEY, HF_CONFIG_NAME
from tsugiki.pretrain.conversion.weights import Weight, split, weight_table
from tsugiki.pretrain.convert_config import WeightDtype
from tsugiki.pretrain.formats.torch_dist_metadata import METADATA_NAME
from tsugiki.pretrain.formats.torch_dist_reader import CONFIG_NAME, DistReader

Result = TypeVar("Result")
_ATTEMPTS = 5


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint with what describes it.

    Attributes:
        checkpoint: the ``torch_dist`` directory.
        spec: its architecture.
        hf_config: the Hugging Face configuration it came with.
        iteration: step of a training checkpoint; None for an imported base.
        facts: ``checkpoint.json`` of a training checkpoint (tokens, layout), else empty.
        home: the folder with the model's description.
    """

    checkpoint: Path
    spec: ModelSpec
    hf_config: dict[str, Any]
    iteration: int | None
    facts: dict[str, Any]
    home: Path

    @property
    def files(self) -> list[Path]:
        """What the model is made of: the checkpoint's files and its description."""
        described = [self.home / name for name in (SPEC_NAME, HF_CONFIG_NAME)]
        return [*(path for path in self.checkpoint.iterdir() if path.is_file()), *described]

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
        mark = checkpoint / MARK_NAME
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
    return TrainedModel(
        checkpoint, ModelSpec.load(home), hf_config, iteration_of(checkpoint.name), facts, home
    )


def while_whole(path: Path, iteration: int | None, use: Callable[[TrainedModel], Result]) -> Result:
    """Use a checkpoint that a training going on may delete meanwhile.

    Training keeps its newest checkpoints only and may write one anew after a rollback. What was read from a
    checkpoint counts only if its ``checkpoint.json`` is afterwards as it was before; else the newest is used
    instead, if none was named.

    Args:
        path: see :func:`find_checkpoint`.
        iteration: likewise.
        use: reads the checkpoint; called again when it was deleted.

    Raises:
        CheckpointError: the one that was named is gone, or training deletes faster than this machine reads.
        ConfigError: the iteration does not exist.
    """
    for _ in range(_ATTEMPTS):
        try:
            model = find_checkpoint(path, iteration)
        except FileNotFoundError:  # deleted between listing and reading
            continue
        try:
            result = use(model)
        except (OSError, CheckpointError):
            if _unchanged(model):
                raise
        else:
            if _unchanged(model):
                return result
        if iteration is not None or model.checkpoint == path:
            break
    raise CheckpointError(
        "training deleted the checkpoint while it was read",
        where=path,
        got="no longer there" if iteration is None else f"step {iteration} is no longer there",
        fix="set train.keep_last_checkpoints higher, or train.keep_checkpoints_every_steps, which keeps some for ever",
    )


def _unchanged(model: TrainedModel) -> bool:
    if model.iteration is None:
        return True
    try:
        mark = json.loads((model.checkpoint / MARK_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(mark == model.facts)


def _iteration_directory(folder: Path, iteration: int | None) -> Path:
    whole = complete_checkpoints(folder)
    if not whole:
        raise CheckpointError(
            "no checkpoint here", where=folder,
            expected="a whole iter_... directory, or the output of an import",
        )  # fmt: skip
    if iteration is None:
        return next(iter(whole.values()))
    if iteration in whole:
        return whole[iteration]
    steps = ", ".join(map(str, sorted(whole)))
    raise ConfigError("no such iteration", where=folder, got=iteration, expected=f"one of {steps}")


@dataclass(frozen=True)
class Unit:
    """Rows ``start:stop`` of a weight in one layer: what is converted, or compared, at a time."""

    weight: Weight
    layer: int
    start: int
    stop: int


def units(spec: ModelSpec) -> list[Unit]:
    """Everything to convert, vocabulary matrices in blocks of rows."""
    result: list[Unit] = []
    for weight in weight_table(spec):
        shape = weight.shape(spec)
        ranges = row_blocks(shape[0], 4 * shape[1]) if weight.vocabulary else [(0, shape[0])]
        for layer in weight.layers(spec):
            result.extend(Unit(weight, layer, *bounds) for bounds in ranges)
    return result


def check_tensors(reader: DistReader, spec: ModelSpec) -> None:
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
    left = [key for key in reader.tensors if key not in known and "optimizer" not in key.split(".")]
    if left:
        raise CheckpointError(
            f"{len(left)} tensors of the checkpoint have no place in a {spec.family}",
            where=reader.directory,
            got=", ".join(f"{key} {list(reader.tensors[key].shape)}" for key in left[:5]),
        )


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
