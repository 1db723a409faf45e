"""Folders merged tensor by tensor: of every model one tensor is in memory at a time.

Rows of the embedding matrices belong to pieces, not to numbers: a row of the result takes the difference of those rows
that the models and the base have for the same piece, and stays as it is where one of them has none.

Letters: n rows of the result's vocabulary.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.text.tokenizer_files import open_tokenizer
from tsugiki.pretrain.formats.safetensors_files import HfReader, HfWriter, torch_dtype
from tsugiki.pretrain.merging.arithmetic import NORMALISED, merged
from tsugiki.pretrain.merging.config import Group, MergeConfig

_BY_PIECE = ("embed_tokens.weight", "lm_head.weight")
_GROUPS: dict[str, Group] = {
    "embed_tokens": "embeddings", "lm_head": "embeddings", "self_attn": "attention", "mlp": "mlp", "norm": "norms",
}  # fmt: skip
_WEIGHTS = (".safetensors", ".bin", ".pth", ".index.json")
_SHORT = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
_SHARD_BYTES = 5_000_000_000


class _Model:
    """A folder: its weights, and the row of each piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader = HfReader(folder)
        self.rows: dict[str, int] = open_tokenizer(folder).fast.get_vocab(with_added_tokens=True)

    def read(
        self, name: str, pieces: Mapping[str, int] | None, shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """A tensor in fp32, and which of its rows this model has [n]; rows of pieces in the result's order.

        Args:
            name: of the tensor.
            pieces: row of each piece in the result; None = the tensor has no vocabulary.
            shape: of the result's.

        Raises:
            CheckpointError: it is missing, or of another shape.
        """
        if name not in self.reader.tensors:
            raise CheckpointError(
                "a model lacks a tensor of the others", where=self.folder, got=f"no {name}",
                expected="models of one architecture, all with tied or all with separate embeddings",
            )  # fmt: skip
        found = self.reader.tensors[name].shape
        if found[1:] != shape[1:] or (pieces is None and found != shape):
            raise CheckpointError(
                "models of different shapes",
                where=f"{self.folder}: {name}",
                got=list(found),
                expected=f"{list(shape)}",
            )
        own = self.reader.read(name).float()
        if pieces is None or (found == shape and self.rows == pieces):
            return own, None
        result, has = torch.zeros(shape), torch.zeros(shape[0], dtype=torch.bool)
        both = [
            (row, self.rows[piece])
            for piece, row in pieces.items()
            if self.rows.get(piece, found[0]) < found[0]
        ]
        here, there = torch.tensor([pair for pair in both if pair[0] < shape[0]]).T
        result[here], has[here] = own[there], True
        return result, has


def merge_folders(config: MergeConfig, output_dir: Path) -> dict[str, Any]:
    """Write the merge into an existing directory; returns counts.

    Raises:
        CheckpointError: models of different architectures, or damaged ones.
    """
    models = [_Model(expand_path(model.path)) for model in config.models]
    base = None if config.base is None else _Model(expand_path(config.base))
    onto = models[0] if base is None else base
    if config.onto is not None:
        onto = _Model(expand_path(config.onto))
    tensors = onto.reader.tensors
    planned = [(name, entry.shape, config.dtype or _SHORT[entry.dtype]) for name, entry in tensors.items()]
    writer = HfWriter(output_dir, planned, _SHARD_BYTES)
    with writer:
        for name, _, dtype in planned:
            writer.write(name, _merge(config, name, onto, base, models).to(torch_dtype(dtype)))
    writer.write_index()
    for path in sorted(onto.folder.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, output_dir / path.name)
    for model in {id(model): model for model in [*models, onto, *([] if base is None else [base])]}.values():
        model.reader.close()
    shared = [sum(piece in model.rows for piece in onto.rows) for model in models]
    return {
        "tensors": len(planned),
        "bytes": writer.total_bytes,
        "pieces": len(onto.rows),
        "shared_pieces": shared,
    }


def group_of(name: str) -> Group | None:
    """Group of a parameter by its Hugging Face name."""
    return next((group for part, group in _GROUPS.items() if part in name), None)


def _merge(config: MergeConfig, name: str, onto: _Model, base: _Model | None, models: list[_Model]) -> Tensor:
    """One tensor of the result, fp32."""
    start = onto.reader.read(name).float()
    shape = tuple(start.shape)
    pieces = onto.rows if name.endswith(_BY_PIECE) else None
    read = [model.read(name, pieces, shape) for model in models]
    values = [value for value, _ in read]
    factor = config.groups.get(group, 1.0) if (group := group_of(name)) else 1.0
    weights = [model.weight * factor for model in config.models]
    normalise = config.method in NORMALISED if config.normalise is None else config.normalise
    if base is None:
        filled = [value if has is None else torch.where(has[:, None], value, start) for value, has in read]
        return merged("linear", None, filled, weights, normalise=normalise)
    origin, known = base.read(name, pieces, shape)
    for place, (value, has) in enumerate(read):
        if has is not None or known is not None:
            both = torch.ones(shape[0], dtype=torch.bool)
            for rows in (has, known):
                both = both if rows is None else both & rows
            values[place] = torch.where(both[:, None], value, origin)
    return start + merged(
        config.method, origin, values, weights, normalise=normalise,
        densities=[model.density for model in config.models],
        generator=torch.Generator().manual_seed(config.seed + zlib.crc32(name.encode())),
    )  # fmt: skip
