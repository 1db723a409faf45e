"""Hugging Face -> Megatron distributed checkpoint, one block of a tensor at a time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_
from tsugiki.experiment.files import write_json_atomically
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.run.sums import sums_compared
from tsugiki.experiment.text.tokenizer_files import tokenizer_size
from tsugiki.pretrain.conversion.finite import require_finite, require_finite_rows
from tsugiki.pretrain.conversion.hf_checkpoint import HfCheckpoint, row_blocks
from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS, find_initialisation
from tsugiki.pretrain.conversion.new_rows import PIECES_NAME, NewRows, Piece, read_pieces
from tsugiki.pretrain.conversion.weights import (
    EMBEDDING,
    EXTRA_STATE_MODULES,
    OUTPUT,
    Weight,
    hf_tensors,
    weight_table,
)
from tsugiki.pretrain.convert_config import DistillationConfig, GraftConfig
from tsugiki.pretrain.formats.byte_ranges import byte_progress, copy_range
from tsugiki.pretrain.formats.journal import LAYOUT, Journal, file_states
from tsugiki.pretrain.formats.safetensors_files import torch_dtype
from tsugiki.pretrain.formats.torch_dist_writer import DistWriter, Slot
from tsugiki.pretrain.model.context_extension import extended_context, with_context

if TYPE_CHECKING:
    import torch

CHECKPOINT_NAME = "checkpoint"
HF_CONFIG_NAME = "hf_config.json"
REPORT_NAME = "graft.json"
# Key of hf_config.json under which the types of the base's tensors travel to the export.
DTYPES_KEY = "_tensor_dtypes"
_FILE_BYTES = 1 << 30
_DISTILLED = "distilled"


@dataclass(frozen=True)
class Block:
    """One chunk of the checkpoint: rows ``start:stop`` of a weight in one layer, and where it goes."""

    weight: Weight
    layer: int
    start: int
    stop: int
    slot: Slot
    dtype: torch.dtype


def write_import(
    hf_dir: Path, output_dir: Path, *, tokenizer_dir: Path | None, config: GraftConfig,
    corpus_dir: Path | None = None, workers: int = 2, seed: int = 1234,
) -> dict[str, Any]:  # fmt: skip
    """Import into an existing directory; see :func:`tsugiki.pretrain.convert.import_checkpoint`.

    Writes ``checkpoint/``, ``model.json``, ``hf_config.json`` and ``graft.json``; returns the
    contents of the latter. ``corpus_dir`` is the text that ``init: distillation`` learns from.
    """
    if config.distillation is not None and corpus_dir is None:
        without = [
            name for name in INITIALISATIONS.names() if not find_initialisation(name).learns_from_corpus
        ]
        raise ConfigError(
            "distillation learns from a corpus, and there is none", where="graft.init", got=config.init,
            expected=f"one of {', '.join(without)}",
            fix="`tsugiki run` gives the graft stage the corpus of the experiment",
        )  # fmt: skip
    source = HfCheckpoint(hf_dir)
    pieces = read_pieces(tokenizer_dir) if tokenizer_dir is not None else []
    rows = _vocabulary_rows(source, tokenizer_dir, pieces, trim=config.trim_padding_rows)
    spec = extended_context(source.spec.model_copy(update={"vocabulary_size": rows}), config)
    new_rows = NewRows(source.read, source.spec.vocabulary_size, pieces, config.init, seed)

    journal = Journal(output_dir, _request(source, tokenizer_dir, rows, config, seed))
    target = output_dir / CHECKPOINT_NAME
    target.mkdir(exist_ok=True)
    writer, blocks = _layout(source, spec, target, config.dtype, laid_out=LAYOUT in journal.done)
    distilled: dict[str, Any] = {}
    with journal:
        require_space(output_dir, writer.total_bytes)
        if pieces and config.distillation is not None:
            assert tokenizer_dir is not None and corpus_dir is not None
            folders = (source.directory, tokenizer_dir, corpus_dir)
            distilled = _distil(source.spec, folders, pieces, new_rows, config.distillation, seed, journal)
        with writer:
            journal.record(LAYOUT)
            with sums_compared(source.files, damaged=journal.forget):
                _write_blocks(source, spec, new_rows, writer, blocks, journal, workers)
            writer.write_metadata()

    spec.save(output_dir)
    write_json_atomically(output_dir / HF_CONFIG_NAME, _hf_config(source, spec))
    report = {
        "base_family": spec.family,
        "base_rows": source.spec.vocabulary_size,
        "kept_rows": min(rows, pieces[0].id if pieces else rows),
        "new_rows": len(pieces),
        "vocabulary_size": rows,
        "parameters": spec.parameters,
        "init": config.init if pieces else None,
        "tied_embeddings": spec.tied_embeddings,
        "base_positions": source.spec.max_positions,
        "max_positions": spec.max_positions,
        "rope_theta": spec.rope_theta,
        "rope_scaling": spec.rope_scaling,
        "dtype": config.dtype or source.dtype,
        "bytes": writer.total_bytes,
        "row_norms": new_rows.norms([EMBEDDING] if spec.tied_embeddings else [EMBEDDING, OUTPUT]),
        **distilled,
    }
    write_json_atomically(output_dir / REPORT_NAME, report)
    source.reader.close()
    return report


def _distil(
    spec: ModelSpec,
    folders: tuple[Path, Path, Path],
    pieces: Sequence[Piece],
    new_rows: NewRows,
    config: DistillationConfig,
    seed: int,
    journal: Journal,
) -> dict[str, Any]:
    """Put trained rows in the place of the means; folders are base, tokenizer and corpus.

    An interrupted attempt's rows are used again: on a GPU another training would give others, beside blocks that
    are written already.
    """
    import torch

    from tsugiki.pretrain.conversion.distill import Distilled, distil_rows

    kept = journal.folder / "distilled.pt"
    if _DISTILLED in journal.done:
        distilled = Distilled(**torch.load(kept, weights_only=True))
    else:
        output_rows = None if spec.tied_embeddings else new_rows.all_rows(OUTPUT)
        distilled = distil_rows(*folders, pieces, new_rows.all_rows(EMBEDDING), output_rows, config, seed)
        torch.save(vars(distilled), kept)
        journal.record(_DISTILLED)
    new_rows.replace(EMBEDDING, distilled.input_rows)
    if distilled.output_rows is not None:
        new_rows.replace(OUTPUT, distilled.output_rows)
    return {"distillation": distilled.report}


def _vocabulary_rows(
    source: HfCheckpoint, tokenizer_dir: Path | None, pieces: Sequence[Piece], *, trim: bool
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


def _target_dtype(source: HfCheckpoint, weight: Weight, asked: str | None) -> torch.dtype:
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


def require_space(directory: Path, needed: int) -> None:
    """Refuse to start when the disk cannot hold the result; what a resumed attempt wrote counts.

    Raises:
        EnvironmentError_: with both sizes.
    """
    written = sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
    free = shutil.disk_usage(directory).free
    if needed - written > free:
        raise EnvironmentError_(
            "not enough disk space for the converted model",
            where=directory,
            got=f"{free / 1e9:.2f} GB free",
            expected=f"{(needed - written) / 1e9:.2f} GB",
            fix="free space, or convert to another disk",
        )


def _request(
    source: HfCheckpoint, tokenizer_dir: Path | None, rows: int, config: GraftConfig, seed: int
) -> dict[str, Any]:
    """What the result depends on, for resuming."""
    files = source.files
    if tokenizer_dir is not None and (tokenizer_dir / PIECES_NAME).is_file():
        files.append(tokenizer_dir / PIECES_NAME)
    return {
        "format": 1,
        "files": file_states(files),
        "rows": rows,
        "config": config.model_dump(),
        "seed": seed,
    }


def _layout(
    source: HfCheckpoint, spec: ModelSpec, target: Path, asked: str | None, *, laid_out: bool
) -> tuple[DistWriter, list[Block]]:
    """The checkpoint's layout. It depends on the model alone, so repeated imports write the same files."""
    writer = DistWriter(target, _FILE_BYTES, laid_out=laid_out)
    blocks: list[Block] = []
    table = weight_table(spec)
    dtypes = {weight.megatron: _target_dtype(source, weight, asked) for weight in table}

    def add(weight: Weight, layer: int, start: int, stop: int) -> None:
        lead, size = ((layer,), (1,)) if weight.per_layer else ((), ())
        rest = weight.shape(spec)[1:]
        slot = writer.add(
            weight.megatron,
            weight.global_shape(spec),
            (*lead, start, *(0 for _ in rest)),
            (*size, stop - start, *rest),
            dtypes[weight.megatron],
        )
        blocks.append(Block(weight, layer, start, stop, slot, dtypes[weight.megatron]))

    for module in EXTRA_STATE_MODULES:
        for layer in range(spec.layers):
            writer.add_object(f"{module}._extra_state/shard_{layer}_{spec.layers}", [None])
    for layer in range(spec.layers):
        for weight in table:
            if weight.per_layer:
                for start, stop in weight.blocks(spec):
                    add(weight, layer, start, stop)
    for weight in table:
        if not weight.per_layer:
            rows = weight.shape(spec)[0]
            for start, stop in row_blocks(rows, math.prod(weight.shape(spec)[1:]) * 4):
                add(weight, 0, start, stop)
    return writer, blocks


def _write_blocks(
    source: HfCheckpoint,
    spec: ModelSpec,
    new_rows: NewRows,
    writer: DistWriter,
    blocks: list[Block],
    journal: Journal,
    workers: int,
) -> None:
    total = sum(block.slot.chunk.length for block in blocks)
    with byte_progress("import", total) as advance, ThreadPoolExecutor(max(1, workers)) as pool:

        def write(numbered: tuple[int, Block]) -> None:
            number, block = numbered
            if str(number) not in journal.done:
                _write_block(source, spec, new_rows, writer, block)
                journal.record(str(number))
            advance(block.slot.chunk.length)

        for_each(pool, write, enumerate(blocks))


def _write_block(
    source: HfCheckpoint, spec: ModelSpec, new_rows: NewRows, writer: DistWriter, block: Block
) -> None:
    """Bring the rows of a block to their place: in the kernel, or through memory to change the type."""
    names = block.weight.names(block.layer)
    for run in block.weight.rows(spec):
        first, last = max(block.start, run.start), min(block.stop, run.start + run.count)
        name = names[run.part]
        kept = min(last, new_rows.first_id) if block.weight.vocabulary else last
        if first < kept:
            _copy_rows(source, name, first - run.start + run.part_start, kept - first, writer, block, first)
        if max(first, kept) < last:
            fresh = new_rows.rows(name, max(first, kept), last).to(block.dtype)
            writer.write(block.slot, fresh, max(first, kept) - block.start)


def _copy_rows(
    source: HfCheckpoint, name: str, row: int, count: int, writer: DistWriter, block: Block, target_row: int
) -> None:
    entry = source.entry(name)
    if torch_dtype(entry.dtype) != block.dtype:
        tensor = source.read(name, row, row + count)
        require_finite(tensor, entry, row)
        tensor = tensor.to(block.dtype)
        require_finite(tensor, entry, row)
        writer.write(block.slot, tensor, target_row - block.start)
        return
    require_finite_rows(source, name, row, count)
    copy_range(
        source.reader.descriptor(entry.name),
        entry.offset + row * entry.row_bytes,
        writer.descriptor(block.slot),
        block.slot.data_position + (target_row - block.start) * entry.row_bytes,
        count * entry.row_bytes,
        entry.file,
    )


def for_each(pool: ThreadPoolExecutor, function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Apply a function in all threads; at the first error the rest is given up and it is raised."""
    futures = [pool.submit(function, item) for item in items]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _hf_config(source: HfCheckpoint, spec: ModelSpec) -> dict[str, Any]:
    """The base's config.json with the new vocabulary and context, and the types of its tensors."""
    config = source.family.exported_config(with_context(source.config, source.spec, spec))
    config["vocab_size"] = spec.vocabulary_size
    exceptions = {
        name: source.dtype_of(name)
        for name, _ in hf_tensors(source.spec)
        if source.dtype_of(name) != source.dtype
    }
    config[DTYPES_KEY] = {"default": source.dtype, "exceptions": exceptions}
    return config
