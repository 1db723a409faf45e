"""Training speed on one GPU: ours in every backend that is installed, and transformers' Trainer, in one run.

    python benchmarks/train_gpu.py --shape tinyllama-1.1b --out results.json
    python benchmarks/train_gpu.py --shape mistral-7b --layers 4 8 --vocabulary 32000 43176 --out results.json
    python benchmarks/train_gpu.py --device cpu --shape tiny          # runs here, to see that it works

Every side is a process of its own, one after the other, on the same random tokens. With two numbers of
layers the time of one layer is their slope; what remains (embedding, output layer, loss, optimizer of
these) is reported apart, and both make the figure of the whole model. Prints a table; --out writes JSON
with hardware, versions, configuration and the seconds of every step.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"layers": 2, "hidden_size": 64, "ffn_size": 176, "heads": 4, "kv_heads": 2, "sequence": 64},
    "tinyllama-1.1b": {
        "layers": 22, "hidden_size": 2048, "ffn_size": 5632, "heads": 32, "kv_heads": 4, "sequence": 2048,
    },
    "llama-2-7b": {
        "layers": 32, "hidden_size": 4096, "ffn_size": 11008, "heads": 32, "kv_heads": 32, "sequence": 4096,
    },
    "mistral-7b": {
        "layers": 32, "hidden_size": 4096, "ffn_size": 14336, "heads": 32, "kv_heads": 8, "sequence": 4096,
    },
}  # fmt: skip
SIDES = (
    "ours", "ours-eager", "ours-plain", "ours-apex", "ours-te", "ours-te-fp8",
    "trainer", "trainer-compile", "trainer-pure-bf16",
)  # fmt: skip
"""`ours` is backend torch, `ours-eager` the same without the compiler, `ours-plain` without any fast path.
Trainer's model is in fp32 under autocast, as its `bf16=True` does; `pure-bf16` holds weights and moments in
bf16: less memory and another result than the rest, which keep fp32 master weights."""
_STATE = "driver_version,clocks.sm,clocks.mem,power.limit"
_PRODUCT = {"cuda": 8192, "cpu": 512}


def spec_of(shape: str, layers: int, vocabulary: int) -> Any:
    """The shape as a ModelSpec."""
    from tsugiki.experiment.model.model_spec import ModelSpec

    facts = {key: value for key, value in SHAPES[shape].items() if key != "sequence"}
    return ModelSpec(
        family="llama", vocabulary_size=vocabulary, max_positions=SHAPES[shape]["sequence"],
        head_dim=facts["hidden_size"] // facts["heads"], **{**facts, "layers": layers},
    )  # fmt: skip


def matmul_peak(device: str) -> float:
    """FLOP/s of a large square product of random numbers in the dtype of training: median of twenty."""
    import torch

    size = _PRODUCT[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for turn in range(23):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        if turn >= 3:
            seconds.append(time.perf_counter() - start)
    del left, right
    if device == "cuda":
        torch.cuda.empty_cache()  # the sides need it
    return 2 * size**3 / statistics.median(seconds)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_memory(device: str) -> int:
    """Bytes: the most that torch held on the GPU, or this process in memory."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_side(options: argparse.Namespace) -> dict[str, Any]:
    """One side in this process: seconds of every step and peak memory."""
    spec = spec_of(options.shape, options.layers[0], options.vocabulary[0])
    sequence = SHAPES[options.shape]["sequence"]
    if options.side.startswith("ours"):
        from gpu_ours import train
    else:
        from gpu_trainer import train
    seconds = train(spec, sequence, options)
    return {"seconds": seconds, "peak_memory_bytes": peak_memory(options.device)}


def versions() -> dict[str, str]:
    """Of everything whose speed is in the numbers."""
    import importlib.metadata

    found = {"python": platform.python_version()}
    for name in (
        "torch", "triton", "megatron-core", "transformers", "accelerate", "transformer-engine",
        "nvidia-cudnn-cu13",
    ):  # fmt: skip
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, Any]:
    """Device, clocks as they are found, processor."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "smi": subprocess.run(
                ["nvidia-smi", f"--query-gpu={_STATE}", "--format=csv,noheader"],
                capture_output=True, text=True, check=False,
            ).stdout.strip(),
        }  # fmt: skip
    return facts


def skipped(side: str, device: str) -> str | None:
    """Why a side does not run here."""
    from tsugiki.experiment.accelerators import has_nvidia_apex, has_transformer_engine

    if side.startswith("ours-te") and not (device == "cuda" and has_transformer_engine()):
        return "transformer-engine is not installed"
    if side == "ours-apex" and not (device == "cuda" and has_nvidia_apex()):
        return "apex is not installed"
    if device == "cpu" and side in ("ours-eager", "trainer-compile", "trainer-pure-bf16"):
        return "needs a GPU"
    return None


def start(side: str, layers: int, vocabulary: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run a side in a process of its own; its answer, or why there is none."""
    reason = skipped(side, options.device)
    if reason:
        return {"skipped": reason}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [
            *(sys.executable, "-W", "ignore", __file__, "--side", side, "--answer", str(answer)),
            *("--shape", options.shape, "--layers", str(layers), "--vocabulary", str(vocabulary)),
            *("--steps", str(options.steps), "--micro-batches", str(options.micro_batches)),
            *("--micro-batch", str(options.micro_batch), "--device", options.device),
            *(("--profile", str(options.profile)) if options.profile and side == "ours" else ()),
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not answer.exists():
            return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def figures(
    shape: str, layers: int, vocabulary: int, step_seconds: float, options: argparse.Namespace
) -> dict[str, float]:
    """Tokens/s and TFLOP/s of a step that took so long."""
    from tsugiki.experiment.model.model_flops import training_flops_per_token

    sequence = SHAPES[shape]["sequence"]
    rate = options.micro_batch * options.micro_batches * sequence / step_seconds
    spec = spec_of(shape, layers, vocabulary)
    full, causal = (training_flops_per_token(spec, sequence, causal=causal) for causal in (False, True))
    return {
        "step_seconds": step_seconds,
        "tokens_per_second": rate,
        "tflops_full_attention": rate * full / 1e12,
        "tflops_causal_attention": rate * causal / 1e12,
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows; a row whose turn comes after the budget is skipped and says so."""
    begin, rows = time.monotonic(), []
    for vocabulary in options.vocabulary:
        for side in options.sides:
            medians = {}
            for layers in options.layers:
                row = {"side": side, "layers": layers, "vocabulary": vocabulary}
                if time.monotonic() - begin > options.budget_seconds:
                    row["skipped"] = "the time budget is used up"
                else:
                    row |= start(side, layers, vocabulary, options)
                if "seconds" in row:
                    counted = row["seconds"][len(row["seconds"]) // 3 :]
                    medians[layers] = statistics.median(counted)
                    row |= figures(options.shape, layers, vocabulary, medians[layers], options)
                rows.append(row)
                print(line(row), flush=True)
            if len(medians) > 1:
                rows.append(extrapolated(side, vocabulary, medians, options))
                print(line(rows[-1]), flush=True)
    return rows


def extrapolated(
    side: str, vocabulary: int, medians: dict[int, float], options: argparse.Namespace
) -> dict[str, Any]:
    """The whole model from the time of a layer (slope) and of the rest (intercept)."""
    few, many = min(medians), max(medians)
    layer = (medians[many] - medians[few]) / (many - few)
    rest = medians[few] - few * layer
    whole = SHAPES[options.shape]["layers"]
    return {
        "side": side, "layers": whole, "vocabulary": vocabulary, "extrapolated_from_layers": [few, many],
        "layer_seconds": layer, "rest_seconds": rest,
        **figures(options.shape, whole, vocabulary, rest + whole * layer, options),
    }  # fmt: skip


def line(row: dict[str, Any], peak: float | None = None) -> str:
    """A row of the table."""
    name = f"{row['side']:18} {row['vocabulary']:>7,} {row['layers']:>4}"
    name += "*" if "extrapolated_from_layers" in row else " "
    if "tokens_per_second" not in row:
        return f"{name}  {row.get('skipped') or 'failed: ' + row['failed']}"
    shares = [row["tflops_full_attention"], row["tflops_causal_attention"]]
    text = f"{name} {row['tokens_per_second']:>10,.0f} {shares[0]:>8.2f} {shares[1]:>8.2f}"
    if peak:
        text += f" {100 * shares[0] * 1e12 / peak:>6.1f}% {100 * shares[1] * 1e12 / peak:>6.1f}%"
    if "peak_memory_bytes" in row:
        text += f" {row['peak_memory_bytes'] / 2**30:>7.1f}"
    return text


def main() -> None:
    """Run the sides and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument(
        "--layers", type=int, nargs="+", help="layers built; two numbers: extrapolated to all"
    )
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 43_176])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=9, help="the first third is not counted")
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget-seconds", type=float, default=540.0)
    parser.add_argument("--kernels", action="store_true", help="the loss and the norm alone, both ways")
    parser.add_argument(
        "--checkpoint", action="store_true", help="time that an asynchronous checkpoint blocks"
    )
    parser.add_argument("--profile", type=Path, help="write torch's profile of one step of `ours` here")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.layers = options.layers or [SHAPES[options.shape]["layers"]]
    if options.side:
        options.answer.write_text(json.dumps(run_side(options)))
        return
    begin = datetime.datetime.now(datetime.UTC)
    print(" ".join([Path(sys.executable).name, *sys.argv]))
    facts = hardware(options.device)
    print(json.dumps({**facts, **versions()}))
    peaks = [matmul_peak(options.device)]
    header = f"{'side':18} {'vocab':>7} {'layers':>5} {'tokens/s':>10} {'full':>8} {'causal':>8}"
    print(header)
    rows = measure(options)
    peaks.append(matmul_peak(options.device))
    peak = max(peaks)
    print(f"\nmatmul peak {peaks[0] / 1e12:.2f} before, {peaks[1] / 1e12:.2f} TFLOP/s after")
    print(f"{header}    MFU full, causal     GiB")
    for row in rows:
        print(line(row, peak))
    report = {
        "command": sys.argv,
        "window": [begin.isoformat(), datetime.datetime.now(datetime.UTC).isoformat()],
        "hardware": facts, "versions": versions(), "matmul_peak_flops": peaks,
        "shape": {**SHAPES[options.shape], "name": options.shape},
        "micro_batch": options.micro_batch, "micro_batches": options.micro_batches, "rows": rows,
    }  # fmt: skip
    if options.kernels:
        from gpu_kernels import kernels

        report["kernels"] = kernels(options.device, options.shape, options.vocabulary)
    if options.checkpoint:
        from gpu_ours import checkpoint_blocking

        spec = spec_of(options.shape, options.layers[0], options.vocabulary[0])
        report["checkpoint"] = checkpoint_blocking(spec, SHAPES[options.shape]["sequence"], options)
        print("checkpoint:", json.dumps(report["checkpoint"]))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
