"""A Hugging Face directory as one GGUF file, a tensor at a time.

Letters of the shapes: r rows of a projection, h heads of it, d width of a head, c columns.

What differs from the Hugging Face files, as llama.cpp's own converter (convert_hf_to_gguf.py) has it: names; vectors
are fp32 always; Gemma's norms carry their offset; and where a family pairs neighbouring dimensions in rotary positions,
rows of queries and keys are reordered. ``llama3`` scaling is a tensor of factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tsugiki.experiment.errors import CheckpointError, ConfigError
from tsugiki.experiment.files import atomic_file
from tsugiki.experiment.model.family import GgufForm, find_family
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.conversion.gguf.beside import write_beside
from tsugiki.pretrain.conversion.gguf.vocabulary import Vocabulary, read_vocabulary
from tsugiki.pretrain.conversion.hf_checkpoint import HfCheckpoint
from tsugiki.pretrain.conversion.weights import hf_tensors

if TYPE_CHECKING:
    import numpy as np
    import torch

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: tuple[str, ...] = get_args(GgufType)
_OWN = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
_YARN_KNOWN = {"rope_type", "factor", "original_max_position_embeddings", *_YARN_DEFAULTS}
_LARGEST_SCALE = 127 * 65504.0
"""Of a block of q8_0, whose scale is fp16."""


def write_gguf(
    hf_dir: Path, path: Path, kind: str | None = None, *, pre: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Write a GGUF file, with a ``Modelfile`` for ollama and a preset for LM Studio beside it.

    Memory is that of the largest tensor in fp32, twice.

    Args:
        hf_dir: Hugging Face directory with its tokenizer.
        path: of the file; it appears when it is whole.
        kind: one of :data:`TYPES`; None takes that of the weights.
        pre: see :func:`~tsugiki.pretrain.conversion.gguf.vocabulary.read_vocabulary`.
        name: of the model; None takes the file's.

    Returns:
        Counts, names of the files, and notes on what differs from transformers.

    Raises:
        ConfigError: a type or a tokenizer that GGUF or llama.cpp does not have, or the file exists already.
        CheckpointError: damaged weights, a family without a GGUF form, or a tensor that the type cannot hold.
        DataError: tokenizer and matrices do not fit.
    """
    import gguf

    if path.exists() or path.suffix != ".gguf":
        raise ConfigError(
            "the output must be a new file whose name ends in .gguf",
            where=path,
            got="a file or folder that exists" if path.exists() else path.name,
            fix="choose another name, or remove it",
        )
    source = HfCheckpoint(hf_dir)
    form = gguf_form(source.spec, hf_dir)
    kind = _checked_type(kind or _OWN[source.dtype])
    vocabulary = read_vocabulary(hf_dir, source.spec.vocabulary_size, pre)
    names = gguf_names(source.spec, form, hf_dir)
    writer: Any = gguf.GGUFWriter(None, form.architecture)
    notes = [*vocabulary.notes, *_describe(writer, source.spec, hf_dir)]
    writer.add_name(name or path.stem)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    describe_vocabulary(writer, vocabulary)
    extra = list(_rope_tensors(source.spec))
    for target, values in extra:
        _announce(writer, target, values.shape, "f32", hf_dir)
    for hf_name, shape in hf_tensors(source.spec):
        _announce(writer, names[hf_name], shape, stored_type(shape, kind), hf_dir)
    with atomic_file(path) as file, closing(writer):
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in extra:
            writer.write_tensor_data(values)
        for hf_name, shape in hf_tensors(source.spec):
            rows = reordered(source.read(hf_name).float(), hf_name, source.spec, form)
            writer.write_tensor_data(_stored(rows, hf_name, stored_type(shape, kind)))
    source.reader.close()
    beside = write_beside(path, hf_dir, vocabulary)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "type": kind,
        "architecture": form.architecture,
        "tensors": len(extra) + len(names),
        "vocabulary_size": len(vocabulary.tokens),
        "pre_tokenizer": vocabulary.pre,
        "beside": [item.name for item in beside],
        "notes": notes,
    }


def gguf_form(spec: ModelSpec, where: Path) -> GgufForm:
    """What the family is in llama.cpp.

    Raises:
        CheckpointError: it has no form there.
    """
    form = find_family(spec.family).gguf
    if form is None:
        raise CheckpointError(
            "this model family has no GGUF form here",
            where=where,
            got=spec.family,
            expected="a family whose file says what it is in llama.cpp (`gguf`)",
            fix="say it there (docs/how-to-add.md), or serve the model with transformers or vLLM",
        )
    return form


def gguf_names(spec: ModelSpec, form: GgufForm, where: Path) -> dict[str, str]:
    """Hugging Face name -> name in GGUF, by the table of the ``gguf`` package.

    Raises:
        CheckpointError: llama.cpp's architecture has no such tensor.
    """
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == form.architecture)
    table = gguf.get_tensor_name_map(architecture, spec.layers)
    names: dict[str, str] = {}
    for name, shape in hf_tensors(spec):
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise CheckpointError(
                f"llama.cpp's {form.architecture} has no place for a tensor of this model",
                where=where,
                got=f"{name} {list(shape)}",
                fix="serve the model with transformers or vLLM (docs/serving.md)",
            )
        names[name] = found
    return names


def stored_type(shape: tuple[int, ...], kind: str) -> str:
    """The type a tensor gets: vectors are fp32 in every file."""
    return "f32" if len(shape) == 1 else kind


def reordered(tensor: torch.Tensor, name: str, spec: ModelSpec, form: GgufForm) -> torch.Tensor:
    """A tensor as llama.cpp multiplies with it.

    Args:
        tensor: of Hugging Face, fp32: [r, c] or [r].
        name: its name there.
        spec: the architecture.
        form: the family's.
    """
    names = find_family(spec.family).names
    part = name.removeprefix("model.layers.").partition(".")[2].rsplit(".", 1)[0]
    if part in (names.attention_norm, names.mlp_norm) or name == "model.norm.weight":
        return tensor + spec.norm_offset
    if form.interleaved_rope and part in names.qkv:
        heads = [spec.heads, spec.kv_heads, 0][list(names.qkv).index(part)]
        if heads:
            halves = tensor.reshape(heads, 2, spec.head_dim // 2, *tensor.shape[1:])  # [h, 2, d/2, c]
            return halves.transpose(1, 2).reshape(tensor.shape)  # rows 0, d/2, 1, d/2 + 1, ... of a head
    return tensor


def _checked_type(kind: str) -> str:
    if kind not in TYPES:
        raise ConfigError("no such type of GGUF weights", where="--type", got=kind, expected=", ".join(TYPES))
    return kind


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str, where: Path) -> None:
    """Tell the writer of a tensor whose data come later."""
    import gguf
    import numpy as np

    quantised = gguf.GGMLQuantizationType[kind.upper()]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantised]
    if shape[-1] % block:
        raise CheckpointError(
            f"{kind} cannot hold a tensor of this model",
            where=f"{where}: {name}",
            got=f"rows of {shape[-1]} numbers",
            expected=f"a multiple of {block}",
            fix="take f16, bf16 or f32",
        )
    size = math.prod(shape) // block * block_bytes
    plain = {"f32": np.float32, "f16": np.float16}.get(kind)
    if plain is not None:
        writer.add_tensor_info(name, shape, np.dtype(plain), size)
    else:
        stored = (*shape[:-1], shape[-1] // block * block_bytes)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, raw_dtype=quantised)


def _stored(tensor: torch.Tensor, name: str, kind: str) -> np.ndarray[Any, Any]:
    """A tensor in the type it is written in.

    Raises:
        CheckpointError: a number that the type cannot hold.
    """
    import gguf
    import numpy as np

    values = tensor.numpy()
    largest = float(np.abs(values).max())  # NaN stays NaN
    limit = {"f16": 65504.0, "q8_0": _LARGEST_SCALE}.get(kind, math.inf)
    if not largest <= limit or math.isinf(largest):
        raise CheckpointError(
            f"{kind} cannot hold a tensor of this model",
            where=name,
            got=f"a weight of {largest:g}",
            expected=f"finite numbers up to {limit:g}",
            fix="take bf16 or f32" if math.isfinite(largest) else "the model is damaged",
        )
    found: np.ndarray[Any, Any] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.upper()])
    return found


def _describe(writer: Any, spec: ModelSpec, where: Path) -> list[str]:
    """The architecture; returns notes."""
    notes = []
    positions = spec.max_positions
    if spec.sliding_window is not None and spec.sliding_window < positions:
        positions = spec.sliding_window
        notes.append(
            "llama.cpp has no window for this architecture: "
            f"the context is {positions} tokens, within which both are equal"
        )
    writer.add_vocab_size(spec.vocabulary_size)
    writer.add_context_length(positions)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.ffn_size)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_epsilon)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    _describe_scaling(writer, spec, where)
    return notes


def _describe_scaling(writer: Any, spec: ModelSpec, where: Path) -> None:
    import gguf

    scaling = spec.rope_scaling
    if scaling is None or scaling["rope_type"] == "llama3":  # which is a tensor
        return
    writer.add_rope_scaling_factor(float(scaling["factor"]))
    if scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        return
    unusual = {
        key: value
        for key, value in scaling.items()
        if value is not None and (key not in _YARN_KNOWN or value != _YARN_DEFAULTS.get(key, value))
    }
    if unusual:
        raise CheckpointError(
            "a setting of yarn scaling has no GGUF form here",
            where=where / "config.json",
            got=unusual,
            expected="factor and original_max_position_embeddings, the rest as transformers assumes it",
        )
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_orig_ctx_len(
        int(scaling.get("original_max_position_embeddings") or spec.max_positions)
    )


def _rope_tensors(spec: ModelSpec) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """``llama3`` scaling: what each rotary frequency is divided by (``_compute_llama3_parameters`` of transformers).

    Wave lengths up to original / high_freq_factor stay, those from original / low_freq_factor on are divided by
    ``factor``, with a blend of the two frequencies between.
    """
    import numpy as np

    scaling = spec.rope_scaling
    if scaling is None or scaling["rope_type"] != "llama3":
        return
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    frequencies = spec.rope_theta ** -(np.arange(0, spec.head_dim, 2) / spec.head_dim)
    smooth = np.clip((original * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
    yield "rope_freqs.weight", (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def describe_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """The tokenizer's fields."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(False)
    for kind, index in vocabulary.ids.items():
        key = {"unknown": "unk", "padding": "pad"}.get(kind, kind)
        getattr(writer, f"add_{key}_token_id")(index)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
