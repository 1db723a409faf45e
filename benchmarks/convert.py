"""Conversion of a large random model: seconds against `cp` of the same bytes, and peak memory.

    python benchmarks/convert.py --shape 7b --directory /scratch

writes a random bf16 model, times `cp` of it, imports it, exports it, compares the bits, and deletes
everything. Each conversion runs in a process of its own, whose peak resident memory is read from
the kernel. File caches are flushed to disk (`sync`) within each timing, so that writing is paid for.
The disk must hold two copies (13.5 GB each for 7b).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_WIDE = {"num_hidden_layers": 32, "num_attention_heads": 32}
SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, **_WIDE},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, **_WIDE, "num_hidden_layers": 22},
}


def write_model(directory: Path, shape: str) -> int:
    """A Llama of random bf16 weights; returns its bytes."""
    import torch

    from tsugiki.experiment.files import write_json_atomically
    from tsugiki.experiment.model.model_spec import ModelSpec
    from tsugiki.pretrain.conversion.weights import hf_tensors
    from tsugiki.pretrain.formats.safetensors_files import HfWriter

    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", **SHAPES[shape],
    }  # fmt: skip
    directory.mkdir(parents=True)
    write_json_atomically(directory / "config.json", config)
    tensors = list(hf_tensors(ModelSpec.from_hf(config)))
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1 << 26, generator=generator).to(torch.bfloat16)
    with HfWriter(directory, [(name, size, "bf16") for name, size in tensors], 5_000_000_000) as writer:
        for number, (name, size) in enumerate(tensors):
            count = torch.Size(size).numel()
            repeated = pool.repeat(-(-count // pool.numel()) + 1)
            writer.write(name, repeated[number * 64 : number * 64 + count].reshape(size))
        writer.write_index()
    return writer.total_bytes


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds until the written bytes are on disk, and what the child process printed."""
    os.sync()
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    os.sync()
    return time.perf_counter() - start, done.stdout


def write_tokenizer(directory: Path, rows: int, pieces: int) -> None:
    """An extended tokenizer as far as the import reads it: added pieces of four base tokens each."""
    directory.mkdir(parents=True)
    lines = ["id\tpiece\tscore\tbase_ids"]
    for number in range(pieces):
        ids = " ".join(str((number * 7919 + step * 104729) % rows) for step in range(4))
        lines.append(f"{rows + number}\tp{number}\t{-number}\t{ids}")
    (directory / "pieces.tsv").write_text("\n".join(lines) + "\n")
    vocabulary = {f"p{number}": number for number in range(rows + pieces)}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


def child(action: str, source: Path, target: Path, workers: int) -> None:
    """One conversion, in this process."""
    from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint, verify_checkpoint
    from tsugiki.pretrain.convert_config import ExportConfig

    if action == "import":
        tokenizer = target.parent / "tokenizer"
        tokenizer_dir = tokenizer if tokenizer.is_dir() else None
        import_checkpoint(source, target, workers=workers, tokenizer_dir=tokenizer_dir)
    elif action == "export":
        export_checkpoint(source, target, workers=workers, config=ExportConfig(verify=False))
    else:
        verify_checkpoint(target, source)
    # High-water mark of this program alone; wait4() would count the parent's memory before exec.
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--directory", type=Path, required=True, help="where the copies go")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pieces", type=int, default=0, help="vocabulary rows to add")
    parser.add_argument("--child", nargs=3, metavar=("ACTION", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        action, source, target = options.child
        child(action, Path(source), Path(target), options.workers)
        return
    work = Path(tempfile.mkdtemp(prefix="convert-benchmark-", dir=options.directory))
    try:
        report = measure(work, options.shape, options.workers, options.pieces)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(report, indent=2))


def measure(work: Path, shape: str, workers: int, pieces: int) -> dict[str, object]:
    size = write_model(work / "base", shape)
    if pieces:
        write_tokenizer(work / "tokenizer", 32000, pieces)

    def convert(action: str, source: str, target: str) -> tuple[float, str]:
        script = [sys.executable, str(Path(__file__).resolve())]
        places = [str(work / source), str(work / target)]
        rest = ["--directory", str(work), "--workers", str(workers), "--child", action, *places]
        return timed([*script, *rest])

    copy_seconds, _ = timed(["cp", "-r", str(work / "base"), str(work / "copy")])
    shutil.rmtree(work / "copy")
    rows = {}
    for name, action, source, target in (
        ("import", "import", "base", "megatron"),
        ("verify_import", "verify", "megatron", "base"),
        ("export", "export", "megatron", "export"),
        ("verify_export", "verify", "megatron", "export"),
    ):
        if name == "verify_import" and pieces:
            continue
        if name == "export":
            # Two copies at a time; the export is compared with what was compared with the base.
            shutil.rmtree(work / "base")
        seconds, peak = convert(action, source, target)
        rows[name] = {
            "seconds": round(seconds, 1),
            "gigabytes_per_second": round(size / seconds / 1e9, 2),
            "share_of_cp_speed": round(copy_seconds / seconds, 2),
            "peak_rss_mb": round(int(peak) * 1024 / 1e6),
        }
    sizes = SHAPES[shape]
    largest = 2 * sizes["hidden_size"] * max(32000, sizes["intermediate_size"])
    return {
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "bytes": size,
        "largest_tensor_mb": round(largest / 1e6),
        "cp_seconds": round(copy_seconds, 1),
        "memory_bound_mb": round(1500 + largest / 1e6),
        "workers": workers,
        **rows,
    }


if __name__ == "__main__":
    main()
