"""A Hugging Face directory as the source of a conversion: checked against the weight table, read lazily."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.model.family import find_family
from tsugiki.experiment.model.model_spec import ModelSpec, read_hf_config
from tsugiki.pretrain.conversion.weights import EMBEDDING, IGNORED_SUFFIXES, OUTPUT, hf_tensors
from tsugiki.pretrain.formats.hf_tensor import HfTensor
from tsugiki.pretrain.formats.safetensors_files import HfReader, dtype_name, torch_dtype

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 64 << 20


class HfCheckpoint:
    """A Hugging Face directory checked against the weight table.

    Attributes:
        spec: architecture of the base.
        family: of its config.json.
        names: table name -> name in the files (they differ for old Yi releases).
        dtype: the most common type of its tensors.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape than the config says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_hf_config(directory)
        self.spec = ModelSpec.from_hf(directory)
        self.reader = HfReader(directory)
        self.family = find_family(self.config["model_type"])
        self.names = {_table_name(name, self.family.names.earlier): name for name in self.reader.tensors}
        self._check()
        counts: Counter[str] = Counter()
        for name, _ in hf_tensors(self.spec):
            counts[self.dtype_of(name)] += self.reader.tensors[self.names[name]].size_bytes
        self.dtype = counts.most_common(1)[0][0]

    @property
    def files(self) -> list[Path]:
        """What decides the weights: config.json and the files that hold them."""
        return [
            *{tensor.file: None for tensor in self.reader.tensors.values()},
            self.directory / "config.json",
        ]

    def dtype_of(self, name: str) -> str:
        """Our name of the type of a tensor."""
        return dtype_name(torch_dtype(self.reader.tensors[self.names[name]].dtype))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows of a tensor, by its name in the table."""
        return self.reader.read(self.names[name], start, stop)

    def entry(self, name: str) -> HfTensor:
        """Where a tensor lies, by its name in the table."""
        return self.reader.tensors[self.names[name]]

    def _check(self) -> None:
        expected = dict(hf_tensors(self.spec))
        for name, shape in expected.items():
            if name not in self.names:
                raise CheckpointError(
                    "tensor missing from the model",
                    where=self.directory,
                    got=f"no {name}",
                    expected=f"{name} {list(shape)}",
                    fix="the weights are incomplete or config.json belongs to another model",
                )
            found = self.reader.tensors[self.names[name]]
            if found.shape != shape:
                raise CheckpointError(
                    "tensor shape contradicts config.json",
                    where=f"{found.file}: {name}",
                    got=list(found.shape),
                    expected=list(shape),
                )
            torch_dtype(found.dtype)
        left = [name for name in self.names if name not in expected and not name.endswith(IGNORED_SUFFIXES)]
        if self.spec.tied_embeddings and OUTPUT in left:
            self._check_tied_copy()
            left.remove(OUTPUT)
        if left:
            shapes = ", ".join(
                f"{name} {list(self.reader.tensors[self.names[name]].shape)}" for name in left[:5]
            )
            raise CheckpointError(
                f"{len(left)} tensors of the model have no place in a {self.spec.family}",
                where=self.directory,
                got=shapes,
                expected="only the tensors that config.json implies",
                fix="adapters and quantised weights must be merged first",
            )

    def _check_tied_copy(self) -> None:
        """Some files repeat the tied matrix as the output layer; it must be the same."""
        output = self.reader.tensors[self.names[OUTPUT]]
        shape = (self.spec.vocabulary_size, self.spec.hidden_size)
        same = output.shape == shape and all(
            self.read(OUTPUT, start, stop).equal(self.read(EMBEDDING, start, stop))
            for start, stop in row_blocks(shape[0], shape[1] * 4)
        )
        if not same:
            raise CheckpointError(
                "config.json says tie_word_embeddings, but the two matrices differ",
                where=f"{output.file}: {OUTPUT}",
                got=list(output.shape),
                expected=f"a copy of {EMBEDDING} {list(shape)}",
                fix="set tie_word_embeddings to false if the output layer was trained apart",
            )


def _table_name(name: str, earlier: Mapping[str, str]) -> str:
    for old, new in earlier.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def row_blocks(rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """Ranges of rows of about 64 MB."""
    step = max(1, _BLOCK_BYTES // row_bytes)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
