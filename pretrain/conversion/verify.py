"""Proof that a Hugging Face directory and a Megatron checkpoint are the same model.

Weights are compared bit by bit. Logits are computed in fp32 on given text, by transformers from the
Hugging Face directory and by Megatron (tensor parallel 1, in a process of its own) from the
checkpoint, read by Megatron's own loader: no code of the conversion is shared by the two sides.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.errors import CheckpointError, EnvironmentError_
from tsugiki.experiment.text.tokenizer_files import open_tokenizer, tokenizer_size
from tsugiki.pretrain.conversion.hf_checkpoint import HfCheckpoint
from tsugiki.pretrain.conversion.import_hf import for_each
from tsugiki.pretrain.conversion.trained_model import TrainedModel, Unit, read_parts, units
from tsugiki.pretrain.conversion.weights import hf_tensors
from tsugiki.pretrain.formats.byte_ranges import byte_progress
from tsugiki.pretrain.formats.safetensors_files import torch_dtype
from tsugiki.pretrain.formats.torch_dist_reader import DistReader

if TYPE_CHECKING:
    import torch

VERIFY_NAME = "verify.json"
_LOGITS_BYTES = 256 << 20
_SEQUENCE = 128
_STDERR_LINES = 12
_TEXTS = 200
_PROBES = (
    "I'm sure they'll say DON'T, 1234567 times.",
    "  two spaces,\ta tab,\n\n  and lines\r\n",
    "東京は日本の首都です。 ประเทศไทย မြန်မာ",
    "e\u0301 ﬁ <s> </s> 👩‍👩‍👧",
)
"""What tokenizers cut differently when their pre-tokenizer, normaliser or dummy prefix is another."""


@dataclass(frozen=True)
class LogitsReport:
    """Logits of both sides, compared over ``tokens`` positions."""

    tokens: int
    max_difference: float
    mean_difference: float
    argmax_agreement: float
    kl_divergence: float
    largest_logit: float


def verify_weights(hf_dir: Path, model: TrainedModel, workers: int = 2) -> dict[str, int]:
    """Compare every tensor bit by bit; a tensor exported in a narrower type is compared in that type.

    Returns:
        ``{"tensors": n, "bytes": n}``.

    Raises:
        CheckpointError: the first tensor that differs, with the number of differing elements; or a
            damaged side.
    """
    import torch

    source = HfCheckpoint(hf_dir)
    spec = model.spec
    if source.spec.vocabulary_size != spec.vocabulary_size:
        raise CheckpointError(
            "the two models have vocabularies of different sizes",
            where=hf_dir,
            got=f"{source.spec.vocabulary_size} rows",
            expected=f"{spec.vocabulary_size} rows as in {model.checkpoint}",
        )
    reader = DistReader(model.checkpoint)
    total = sum(source.entry(name).size_bytes for name, _ in hf_tensors(spec))
    with byte_progress("verify", total) as advance, ThreadPoolExecutor(max(1, workers)) as pool:

        def compare(unit: Unit) -> None:
            parts = read_parts(reader, spec, unit.weight, unit.layer, unit.start, unit.stop)
            for name, expected in parts:
                stop = unit.start + expected.shape[0]
                found = source.read(name, unit.start, stop)
                expected = expected.to(found.dtype)
                bits = torch.int32 if found.dtype == torch.float32 else torch.int16
                if found.shape != expected.shape or not found.view(bits).equal(expected.view(bits)):
                    raise CheckpointError(
                        "tensor differs",
                        where=f"{hf_dir}: {name}, rows {unit.start} to {stop}",
                        got=_difference(found, expected),
                        expected=f"the bits of {unit.weight.megatron}, layer {unit.layer}, "
                        f"in {model.checkpoint}",
                    )
                advance(found.nbytes)

        for_each(pool, compare, units(spec))
    source.reader.close()
    reader.close()
    return {"tensors": len(source.names), "bytes": total}


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    if found.shape != expected.shape:
        return f"{list(found.shape)} instead of {list(expected.shape)}"
    gap = (found.float() - expected.float()).abs()
    return f"{int((gap > 0).sum())} of {gap.numel()} elements differ, by {gap.max().item():.3g} at most"


def verify_vocabulary(hf_dir: Path) -> int:
    """Check ``vocab_size`` = rows of both matrices = ``len(tokenizer)``; returns the size.

    Raises:
        CheckpointError: they differ.
    """
    size = HfCheckpoint(hf_dir).spec.vocabulary_size
    if (found := tokenizer_size(hf_dir)) != size:
        raise CheckpointError(
            "the tokenizer and the matrices of the model differ in size",
            where=hf_dir,
            got=f"{found} ids in the tokenizer",
            expected=f"{size} rows",
        )
    return size


def compare_auto_tokenizer(hf_dir: Path, texts: Iterable[str]) -> dict[str, Any]:
    """Ids by ``AutoTokenizer`` against those of ``tokenizer.json`` as it stands, which the model was trained on.

    transformers 5 chooses the class by the ``model_type`` of config.json, whatever the tokenizer's own files say, and
    some classes replace the pre-tokenizer: a Qwen2 with another tokenizer than Qwen's is cut otherwise. No setting in
    the folder prevents that, so it is told and not refused.

    Returns:
        ``class`` that was chosen, ``texts`` compared, how many ``differ``, and the first as ``example``; or ``error``.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = open_tokenizer(hf_dir, special_tokens_in_text=False)
    compared = [*_PROBES, *(text[:2000] for text in texts)]
    try:
        auto: Any = transformers.AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
        differing = [
            text
            for text in compared
            if auto.encode(text, add_special_tokens=False, split_special_tokens=True)
            != tokenizer.encode(text)
        ]
    except Exception as error:  # any may come out of a class that does not fit the files
        return {"error": f"{type(error).__name__}: {error}"[:300], "texts": len(compared)}
    found = {"class": type(auto).__name__, "texts": len(compared), "differ": len(differing)}
    return found | ({"example": differing[0][:200]} if differing else {})


def encode_text(tokenizer_dir: Path, texts: Iterable[str], tokens: int) -> list[list[int]]:
    """Sequences of at most 128 ids, ``tokens`` in all, from the texts in turn; none without text.

    Raises:
        DataError: unreadable tokenizer.
    """
    tokenizer = None
    sequences: list[list[int]] = []
    left = tokens
    for text in texts:
        if tokenizer is None:
            tokenizer = open_tokenizer(tokenizer_dir, special_tokens_in_text=False)
        ids = tokenizer.encode(text[:2000])[: min(_SEQUENCE, left)]
        if ids:
            sequences.append(ids)
            left -= len(ids)
        if left <= 0:
            break
    return sequences


def pseudo_random_ids(vocabulary_size: int, tokens: int) -> list[list[int]]:
    """Reproducible sequences of ids that touch the whole vocabulary evenly."""
    # A Weyl sequence: multiples of the golden ratio modulo the size.
    ids = [int(index * 0.6180339887498949 * vocabulary_size) % vocabulary_size for index in range(tokens)]
    return [ids[start : start + _SEQUENCE] for start in range(0, tokens, _SEQUENCE)]


def verify_logits(hf_dir: Path, model: TrainedModel, sequences: Sequence[Sequence[int]]) -> LogitsReport:
    """Compare fp32 logits of transformers and Megatron.

    Args:
        hf_dir: Hugging Face directory.
        model: the checkpoint.
        sequences: token ids; cut so that the logits of one side fit 256 MB.

    Raises:
        CheckpointError: Megatron could not load or run the checkpoint.
    """
    import torch

    sequences = _fitting(sequences, model.spec)
    with tempfile.TemporaryDirectory(prefix="tsugiki-verify-") as folder:
        # Megatron starts up in its own process while transformers runs here.
        process = _start_megatron(Path(folder), hf_dir, model, sequences)
        try:
            theirs = hf_logits(hf_dir, sequences)
        finally:
            _, stderr = process.communicate()
        if process.returncode != 0:
            lines = stderr.decode(errors="replace").strip().splitlines()[-_STDERR_LINES:]
            raise CheckpointError(
                "Megatron could not compute the logits", where=model.checkpoint, got="\n".join(lines)
            )
        ours = torch.load(Path(folder) / "logits.pt", weights_only=True)
    return compare_logits(theirs, ours)


def _fitting(sequences: Sequence[Sequence[int]], spec: Any) -> list[list[int]]:
    left = max(8, _LOGITS_BYTES // (4 * spec.vocabulary_size))
    kept: list[list[int]] = []
    for ids in sequences:
        cut = list(ids[: min(left, spec.max_positions)])
        if cut:
            kept.append(cut)
        left -= len(cut)
    return kept


def _start_megatron(
    folder: Path, hf_dir: Path, model: TrainedModel, sequences: Sequence[Sequence[int]]
) -> subprocess.Popen[bytes]:
    source = HfCheckpoint(hf_dir)
    request = {
        "checkpoint": str(model.checkpoint.resolve()),
        "spec": model.spec.model_dump(),
        "sequences": [list(ids) for ids in sequences],
        "dtypes": {name: source.dtype_of(name) for name, _ in hf_tensors(model.spec)},
        "output": str(folder / "logits.pt"),
    }
    source.reader.close()
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    environment = dict(os.environ)
    # On the CPU, as transformers: the GPU may be training, and its sums are rounded otherwise.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        environment.pop(name, None)
    try:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "tsugiki.pretrain.conversion.verify_megatron",
                str(folder / "request.json"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise EnvironmentError_("cannot start a process", got=error) from error


def hf_logits(hf_dir: Path, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """fp32 logits of transformers, one tensor [tokens, vocabulary] a sequence."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        hf_dir, dtype=torch.float32, low_cpu_mem_usage=True, local_files_only=True
    ).eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)])).logits[0] for ids in sequences]


def compare_logits(theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor]) -> LogitsReport:
    """Differences of two lists of logits [tokens, vocabulary]."""
    import torch

    tokens, largest_gap, total_gap, elements, agreed, divergence, largest = 0, 0.0, 0.0, 0, 0, 0.0, 0.0
    for left, right in zip(theirs, ours, strict=True):
        gap = (left - right).abs()
        # NaN compares false with everything; it must not pass for agreement.
        largest_gap = max(largest_gap, gap.max().item()) if bool(gap.isfinite().all()) else float("inf")
        total_gap += gap.sum(dtype=torch.float64).item()
        elements += gap.numel()
        agreed += int((left.argmax(-1) == right.argmax(-1)).sum())
        log_p, log_q = left.double().log_softmax(-1), right.double().log_softmax(-1)
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        largest = max(largest, left.abs().max().item())
        tokens += left.shape[0]
    return LogitsReport(
        tokens=tokens,
        max_difference=largest_gap,
        mean_difference=total_gap / elements,
        argmax_agreement=agreed / tokens,
        kl_divergence=divergence / tokens,
        largest_logit=largest,
    )


def check_logits(report: LogitsReport, tolerance: float, hf_dir: Path) -> None:
    """Refuse a difference above the tolerance.

    Raises:
        CheckpointError: with the figures.
    """
    if not report.max_difference <= tolerance:
        raise CheckpointError(
            "logits of transformers and Megatron differ",
            where=hf_dir,
            got=", ".join(f"{key} {value:.4g}" for key, value in asdict(report).items()),
            expected=f"at most {tolerance:g} apart",
        )


def verify_export(
    hf_dir: Path,
    model: TrainedModel,
    texts: Iterable[str],
    *,
    tokens: int,
    tolerance: float,
    report_path: Path,
) -> dict[str, Any]:
    """All checks of an exported directory; writes and returns their figures.

    Logits are left out, and the report says so, where the machine cannot hold the model twice in
    fp32.

    Raises:
        CheckpointError: vocabulary, weights or logits differ.
    """
    import psutil

    texts = list(itertools.islice(texts, _TEXTS))
    report: dict[str, Any] = {
        "vocabulary_size": verify_vocabulary(hf_dir),
        "weights": verify_weights(hf_dir, model),
        "tokenizer": compare_auto_tokenizer(hf_dir, texts),
    }
    available = psutil.virtual_memory().available
    if (needed := logits_memory_bytes(model)) > available:
        report["logits"] = None
        report["logits_skipped"] = f"needs {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} GB are free"
    else:
        sequences = encode_text(hf_dir, texts, tokens)
        sequences = sequences or pseudo_random_ids(model.spec.vocabulary_size, tokens)
        logits = verify_logits(hf_dir, model, sequences)
        check_logits(logits, tolerance, hf_dir)
        report["logits"] = asdict(logits)
    report_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def logits_memory_bytes(model: TrainedModel) -> int:
    """Memory the logits comparison needs: the model twice in fp32, and the logits."""
    return 8 * model.spec.parameters + 2 * _LOGITS_BYTES


def narrowed(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """A tensor rounded to the type it is exported in, in its own type again."""
    return tensor.to(torch_dtype(dtype)).to(tensor.dtype)
