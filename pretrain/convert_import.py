"""Hugging Face -> Megatron distributed checkpoint, one block of a tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.errors import CheckpointError, DataError, EnvironmentError_
from pretrain.convert_config import GraftConfig
from pretrain.dist_files import DistFile, DistFileWriter, write_metadata
from pretrain.hf_files import DTYPES, HfReader, byte_progress, dtype_name, torch_dtype, write_json
from pretrain.new_rows import NewRows, Piece, read_pieces, tokenizer_size
from pretrain.spec import ModelSpec, read_hf_config
from pretrain.weights import (
    ALIASES,
    EMBEDDING,
    EXTRA_STATE_MODULES,
    IGNORED_SUFFIXES,
    OUTPUT,
    Weight,
    hf_tensors,
    merge,
    weight_table,
)

if TYPE_CHECKING:
    import torch

CHECKPOINT_NAME = "checkpoint"
HF_CONFIG_NAME = "hf_config.json"
REPORT_NAME = "graft.json"
# Key of hf_config.json under which the types of the base's tensors travel to the export.
DTYPES_KEY = "_tensor_dtypes"
_FILE_BYTES = 1 << 30
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Block:
    """One chunk of the checkpoint: rows ``start:stop`` of a weight in one layer."""

    weight: Weight
    layer: int
    start: int
    stop: int


class Source:
    """A Hugging Face directory checked against the weight table.

    Attributes:
        spec: architecture of the base.
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
        self.names = {_table_name(name): name for name in self.reader.tensors}
        self._check()
        counts: Counter[str] = Counter()
        for name, _ in hf_tensors(self.spec):
            counts[self.dtype_of(name)] += self.reader.tensors[self.names[name]].size_bytes
        self.dtype = counts.most_common(1)[0][0]

    def dtype_of(self, name: str) -> str:
        """Our name of the type of a tensor."""
        return dtype_name(torch_dtype(self.reader.tensors[self.names[name]].dtype))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows of a tensor, by its name in the table."""
        return self.reader.read(self.names[name], start, stop)

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
            for start, stop in _row_blocks(shape[0], shape[1] * 4)
        )
        if not same:
            raise CheckpointError(
                "config.json says tie_word_embeddings, but the two matrices differ",
                where=f"{output.file}: {OUTPUT}",
                got=list(output.shape),
                expected=f"a copy of {EMBEDDING} {list(shape)}",
                fix="set tie_word_embeddings to false if the output layer was trained apart",
            )


def _table_name(name: str) -> str:
    for old, new in ALIASES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _row_blocks(rows: int, row_bytes: int) -> list[tuple[int, int]]:
    step = max(1, _BLOCK_BYTES // row_bytes)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def write_import(
    hf_dir: Path, output_dir: Path, *, tokenizer_dir: Path | None, config: GraftConfig, workers: int = 2,
    seed: int = 1234,
) -> dict[str, Any]:  # fmt: skip
    """Import into an existing directory; see :func:`pretrain.convert.import_checkpoint`.

    Writes ``checkpoint/``, ``model.json``, ``hf_config.json`` and ``graft.json``; returns the
    contents of the latter.
    """
    source = Source(hf_dir)
    pieces = read_pieces(tokenizer_dir) if tokenizer_dir is not None else []
    rows = _vocabulary_rows(source, tokenizer_dir, pieces, trim=config.trim_padding_rows)
    spec = source.spec.model_copy(update={"vocabulary_size": rows})
    new_rows = NewRows(source.read, source.spec.vocabulary_size, pieces, config.init, seed)
    _require_space(output_dir, spec, config.dtype or source.dtype)

    target = output_dir / CHECKPOINT_NAME
    target.mkdir(exist_ok=True)
    files = _write_files(source, spec, new_rows, target, config.dtype, workers)
    tensors = {
        weight.megatron: (weight.global_shape(spec), _target_dtype(source, weight, config.dtype))
        for weight in weight_table(spec)
    }
    write_metadata(target, files, tensors)

    spec.save(output_dir)
    write_json(output_dir / HF_CONFIG_NAME, _hf_config(source, spec, config.dtype))
    report = {
        "base_family": spec.family,
        "base_rows": source.spec.vocabulary_size,
        "kept_rows": min(rows, pieces[0].id if pieces else rows),
        "new_rows": len(pieces),
        "vocabulary_size": rows,
        "parameters": spec.parameters,
        "init": config.init if pieces else None,
        "tied_embeddings": spec.tied_embeddings,
        "dtype": config.dtype or source.dtype,
        "bytes": sum(chunk.length for file in files for _, chunk in file.chunks),
        "row_norms": new_rows.norms(),
    }
    write_json(output_dir / REPORT_NAME, report)
    source.reader.close()
    return report


def _vocabulary_rows(
    source: Source, tokenizer_dir: Path | None, pieces: Sequence[Piece], *, trim: bool
) -> int:
    """Rows of the matrices after the import, checked against the tokenizer."""
    base = source.spec.vocabulary_size
    if tokenizer_dir is None:
        return base
    size = tokenizer_size(tokenizer_dir)
    matrix = f"{EMBEDDING} {[base, source.spec.hidden_size]}"
    if pieces:
        first, last = pieces[0].id, pieces[-1].id
        if first > base or last + 1 != size:
            raise DataError(
                "the extended tokenizer does not fit the matrix",
                where=tokenizer_dir,
                got=f"new ids {first} to {last}, tokenizer of {size}, {matrix}",
                expected=f"new ids from {base} (or less, over padding rows) to {size - 1}",
                fix="extend the tokenizer of this very base model",
            )
        return size
    if size > base:
        raise DataError(
            "the tokenizer is larger than the matrix", where=tokenizer_dir, got=f"{size} ids",
            expected=f"at most the rows of {matrix}", fix="use the tokenizer of this base model",
        )  # fmt: skip
    if size < base and not trim:
        raise DataError(
            "the tokenizer is smaller than the matrix",
            where=tokenizer_dir,
            got=f"{size} ids",
            expected=f"the rows of {matrix}",
            fix="if the rows above are padding, set graft.trim_padding_rows=true",
        )
    return size


def _target_dtype(source: Source, weight: Weight, asked: str | None) -> torch.dtype:
    """Type of a Megatron tensor: as asked, or the base's; parts of several types are refused."""
    if asked is not None:
        return torch_dtype(asked)
    names = [name for layer in weight.layers(source.spec) for name in weight.names(layer)]
    types = {source.dtype_of(name): name for name in names}
    if len(types) > 1:
        raise CheckpointError(
            "tensors that become one Megatron tensor have several types",
            where=f"{source.directory}: {weight.megatron}",
            got=", ".join(f"{name} {dtype}" for dtype, name in types.items()),
            fix="ask for one type with --dtype (graft.dtype)",
        )
    return torch_dtype(next(iter(types)))


def _require_space(directory: Path, spec: ModelSpec, dtype: str) -> None:
    item = 4 if dtype == "fp32" else 2
    # Zip records and metadata come to under 3 kB a chunk.
    needed = spec.parameters * item + 100_000 * (spec.layers + 1)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise EnvironmentError_(
            "not enough disk space for the converted model",
            where=directory,
            got=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB",
            fix="free space, or convert to another disk",
        )


def _plan(spec: ModelSpec, item_bytes: int) -> list[list[Block]]:
    """Blocks by file. Depends on the model alone, so that a repeated import writes the same files."""
    files: list[list[Block]] = [[]]
    filled = 0
    blocks: list[Block] = []
    table = weight_table(spec)
    for layer in range(spec.layers):
        for weight in table:
            if weight.per_layer:
                blocks.extend(Block(weight, layer, *bounds) for bounds in weight.blocks(spec))
    for weight in table:
        if not weight.per_layer:
            rows, *rest = weight.shape(spec)
            width = rest[0] if rest else 1
            blocks.extend(Block(weight, 0, *bounds) for bounds in _row_blocks(rows, width * item_bytes))
    for block in blocks:
        width = block.weight.shape(spec)[1] if len(block.weight.shape(spec)) > 1 else 1
        size = (block.stop - block.start) * width * item_bytes
        if files[-1] and filled + size > _FILE_BYTES:
            files.append([])
            filled = 0
        files[-1].append(block)
        filled += size
    return files


def _write_files(
    source: Source, spec: ModelSpec, new_rows: NewRows, target: Path, asked: str | None, workers: int
) -> list[DistFile]:
    item_bytes = 4 if (asked or source.dtype) == "fp32" else 2
    plan = _plan(spec, item_bytes)

    def write_file(number: int) -> DistFile:
        with DistFileWriter(target, f"__0_{number}.distcp") as writer:
            if number == 0:
                for module in EXTRA_STATE_MODULES:
                    for layer in range(spec.layers):
                        key = f"{module}._extra_state/shard_{layer}_{spec.layers}"
                        writer.write_object(key, [None])
            for block in plan[number]:
                tensor = _read_block(source, spec, new_rows, block)
                if asked is not None:
                    tensor = tensor.to(torch_dtype(asked))
                offsets: tuple[int, ...] = (block.start,) + (0,) * (tensor.dim() - 1)
                if block.weight.per_layer:
                    tensor, offsets = tensor.unsqueeze(0), (block.layer, *offsets)
                advance(writer.write_tensor(block.weight.megatron, offsets, tensor))
        return writer.content

    with (
        byte_progress("import", spec.parameters * item_bytes) as advance,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        return list(pool.map(write_file, range(len(plan))))


def _read_block(source: Source, spec: ModelSpec, new_rows: NewRows, block: Block) -> torch.Tensor:
    import torch

    weight = block.weight
    names = weight.names(block.layer)
    if weight.vocabulary:
        kept = min(block.stop, max(block.start, new_rows.first_id))
        old = source.read(names[0], block.start, kept)
        if kept == block.stop:
            return old
        return torch.cat((old, new_rows.rows(names[0], kept, block.stop).to(old.dtype)))
    if weight.layout == "gate_up":
        return source.read(names[0 if block.start == 0 else 1])
    return merge(weight, [source.read(name) for name in names], spec)


def _hf_config(source: Source, spec: ModelSpec, asked: str | None) -> dict[str, Any]:
    """The base's config.json with the new vocabulary, and the types of its tensors."""
    config = dict(source.config)
    config["vocab_size"] = spec.vocabulary_size
    if config["model_type"] not in ("llama", "mistral", "gemma", "qwen2"):
        # Yi's own code is not needed: the architecture is Llama's.
        config["model_type"], config["architectures"] = "llama", ["LlamaForCausalLM"]
        config.pop("auto_map", None)
    exceptions = {
        name: source.dtype_of(name)
        for name, _ in hf_tensors(source.spec)
        if asked is None and source.dtype_of(name) != source.dtype
    }
    default = asked or source.dtype
    assert default in DTYPES
    config[DTYPES_KEY] = {"default": default, "exceptions": exceptions}
    return config


def load_report(directory: Path) -> dict[str, Any]:
    """Contents of ``graft.json``.

    Raises:
        CheckpointError: missing or not JSON.
    """
    try:
        loaded: dict[str, Any] = json.loads((directory / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("no import report here", where=directory / REPORT_NAME, got=error) from error
    return loaded
