"""Whether a GGUF file is the model of a Hugging Face directory.

Two checks. Every tensor is read back and compared with its own, rounded to the file's type: equal bits for f32, f16
and bf16, within half a step for q8_0; and so are the fields of the tokenizer. Then, where ``llama-cpp-python`` is
installed, llama.cpp itself opens the file: ids of the given lines, logits, and the most likely next token at every
position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import CheckpointError, DataError, EnvironmentError_
from tsugiki.experiment.text.tokenizer_files import open_tokenizer
from tsugiki.pretrain.conversion.gguf.vocabulary import read_vocabulary
from tsugiki.pretrain.conversion.gguf.write import gguf_form, gguf_names, reordered, stored_type
from tsugiki.pretrain.conversion.hf_checkpoint import HfCheckpoint
from tsugiki.pretrain.conversion.verify import compare_logits, encode_text, hf_logits, pseudo_random_ids
from tsugiki.pretrain.conversion.weights import hf_tensors

# Largest difference of a logit, in units of the largest one. llama.cpp rounds activations to the type of the weights
# before it multiplies (to eight bits for q8_0), which transformers in fp32 does not.
TOLERANCES = {"f32": 1e-4, "f16": 2e-3, "bf16": 2e-2, "q8_0": 5e-2}
_CONTEXT = 256
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0"}


def verify_gguf(
    hf_dir: Path, path: Path, texts: Sequence[str] = (), *, tokens: int = 512, llama_cpp: bool | None = None
) -> dict[str, Any]:
    """Compare a GGUF file with the model it was made from.

    Args:
        hf_dir: Hugging Face directory.
        path: GGUF file.
        texts: lines whose ids are compared, and what logits are computed on; without any, ids that touch the whole
            vocabulary.
        tokens: how many tokens logits are computed on.
        llama_cpp: ask llama.cpp too; None does so where it is installed.

    Returns:
        ``tensors`` compared, ``type``, and ``llama_cpp``: lines, and figures of
        :class:`~tsugiki.pretrain.conversion.verify.LogitsReport`, or None.

    Raises:
        CheckpointError: the first difference.
        DataError: not a GGUF file.
        EnvironmentError_: ``llama_cpp`` is wanted and not installed.
    """
    kind, count = compare_file(hf_dir, path)
    found: dict[str, Any] = {"tensors": count, "type": kind, "llama_cpp": None}
    try:
        import llama_cpp as engine
    except ImportError as error:
        if llama_cpp:
            raise EnvironmentError_(
                "llama.cpp is not installed",
                fix="pip install 'tsugiki[llama-cpp]', which builds it (needs a C++ compiler and CMake)",
            ) from error
        return found
    if llama_cpp is not False:
        lines = compare_ids(hf_dir, path, texts)
        found["llama_cpp"] = {
            "version": engine.__version__,
            "lines": lines,
            "logits": llama_cpp_logits(hf_dir, path, kind, texts, tokens),
        }
    return found


def compare_file(hf_dir: Path, path: Path) -> tuple[str, int]:
    """Compare tensors and tokenizer of a file with a directory; returns type of the matrices and number of tensors.

    Raises:
        CheckpointError: the first difference.
        DataError: not a GGUF file.
    """
    import gguf
    import torch

    try:
        reader: Any = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DataError("not a whole GGUF file", where=path, got=error, fix="write it again") from error
    source = HfCheckpoint(hf_dir)
    form = gguf_form(source.spec, hf_dir)
    held = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf_names(source.spec, form, hf_dir)
    if extra := set(held) - set(names.values()) - {"rope_freqs.weight"}:
        raise CheckpointError("tensors of another model", where=path, got=", ".join(sorted(extra)[:8]))
    matrices = {tensor.tensor_type.name for tensor in held.values() if len(tensor.shape) > 1}
    if len(matrices) != 1 or not matrices <= set(_TYPES):
        raise CheckpointError(
            "a mixture of types that is not compared here", where=path, got=", ".join(sorted(matrices))
        )
    kind = _TYPES[matrices.pop()]
    for name, shape in hf_tensors(source.spec):
        entry = held.get(names[name])
        if entry is None or tuple(reversed(entry.shape.tolist())) != shape:
            got = "nothing" if entry is None else list(reversed(entry.shape.tolist()))
            raise CheckpointError(
                "tensor missing or of another shape",
                where=f"{path}: {names[name]}",
                got=got,
                expected=list(shape),
            )
        values = torch.from_numpy(gguf.quants.dequantize(entry.data, entry.tensor_type).copy()).reshape(shape)
        _compare(
            values,
            reordered(source.read(name).float(), name, source.spec, form),
            stored_type(shape, kind),
            path,
            name,
        )
    source.reader.close()
    _compare_vocabulary(reader, hf_dir, path, source.spec.vocabulary_size)
    return kind, len(names)


def _compare(found: Any, expected: Any, kind: str, path: Path, name: str) -> None:
    """``found`` and ``expected``: fp32, the same shape."""
    import torch

    if kind == "q8_0":
        blocks = expected.reshape(-1, 32)
        # Half a step of a block, and the rounding of its scale to fp16.
        allowed = blocks.abs().amax(1, keepdim=True) / 127 * (0.5 + 127 * 2**-11) + 1e-7
        same = bool(((found.reshape(-1, 32) - blocks).abs() <= allowed).all())
    else:
        narrow = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
        same = bool(found.equal(expected.to(narrow).float()))
    if not same:
        gap = (found - expected).abs()
        raise CheckpointError(
            "tensor differs",
            where=f"{path}: {name}",
            got=f"{int((gap > 0).sum())} of {gap.numel()} numbers differ, by {gap.max().item():.3g} at most",
            expected=f"the numbers of the Hugging Face model in {kind}",
        )


def _compare_vocabulary(reader: Any, hf_dir: Path, path: Path, rows: int) -> None:
    def value(key: str) -> Any:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        return None if field is None else field.contents()

    expected = read_vocabulary(hf_dir, rows, value("pre"))
    pairs = {
        "model": expected.model,
        "tokens": expected.tokens,
        "token_type": expected.types,
        "merges": expected.merges,
        "add_space_prefix": expected.space_prefix,
        "add_bos_token": expected.adds_bos,
        **{f"{kind}_token_id": index for kind, index in expected.ids.items()},
    }
    for key, wanted in pairs.items():
        if (got := value(key)) != wanted:
            raise CheckpointError(
                "the tokenizer differs",
                where=f"{path}: tokenizer.ggml.{key}",
                got=str(got)[:200],
                expected=str(wanted)[:200],
            )
    scores = value("scores")
    # Stored as float32, which the pieces of a SentencePiece model are as well.
    if expected.scores is not None and scores != expected.scores:
        raise CheckpointError("the tokenizer differs", where=f"{path}: tokenizer.ggml.scores")


def _open(path: Path, **options: Any) -> Any:
    import llama_cpp

    try:
        # The cache in fp32, as transformers computes; no GPU, so that the figures are the same everywhere.
        return llama_cpp.Llama(
            str(path), n_gpu_layers=0, type_k=0, type_v=0, flash_attn=False, verbose=False, **options
        )
    except (ValueError, RuntimeError) as error:
        raise CheckpointError("llama.cpp cannot load the file", where=path, got=error) from error


def compare_ids(hf_dir: Path, path: Path, texts: Sequence[str]) -> int:
    """Compare llama.cpp's ids of texts with those of the directory; returns how many texts.

    Raises:
        CheckpointError: a text has other ids.
    """
    if not texts:
        return 0
    tokenizer = open_tokenizer(hf_dir, special_tokens_in_text=False)
    model = _open(path, vocab_only=True)
    try:
        for number, text in enumerate(texts):
            expected = tokenizer.encode(text)
            found = model.tokenize(text.encode(), add_bos=False, special=False) if text else []
            if found != expected:
                at = next(
                    (n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
                    min(len(found), len(expected)),
                )
                raise CheckpointError(
                    "llama.cpp cuts a text otherwise",
                    where=f"{path}: line {number + 1}, token {at + 1}",
                    got=[tokenizer.surface(index) for index in found[at : at + 6]],
                    expected=[tokenizer.surface(index) for index in expected[at : at + 6]],
                )
    finally:
        model.close()
    return len(texts)


def llama_cpp_logits(
    hf_dir: Path, path: Path, kind: str, texts: Sequence[str], tokens: int
) -> dict[str, float]:
    """Compare llama.cpp's logits with those of transformers in fp32.

    Raises:
        CheckpointError: further apart than :data:`TOLERANCES`.
    """
    import numpy as np
    import torch

    sequences = encode_text(hf_dir, texts, tokens)
    model = _open(path, n_ctx=_CONTEXT, logits_all=True)
    try:
        sequences = sequences or pseudo_random_ids(model.n_vocab(), tokens)
        # Behind a sliding window the two differ, and the file's context ends there.
        context = int(model.metadata[f"{model.metadata['general.architecture']}.context_length"])
        sequences = [ids[: min(context, _CONTEXT)] for ids in sequences]
        ours = []
        for ids in sequences:
            model.reset()
            model.eval(ids)
            ours.append(torch.from_numpy(np.array(model.scores[: len(ids)])))
    finally:
        model.close()
    report = compare_logits(hf_logits(hf_dir, sequences), ours)
    allowed = TOLERANCES[kind] * report.largest_logit
    figures = {key: float(value) for key, value in asdict(report).items()}
    if not report.max_difference <= allowed:
        raise CheckpointError(
            "logits of llama.cpp and transformers differ",
            where=path,
            got=", ".join(f"{key} {value:.4g}" for key, value in figures.items()),
            expected=f"at most {allowed:.3g} apart for {kind}",
        )
    return figures
