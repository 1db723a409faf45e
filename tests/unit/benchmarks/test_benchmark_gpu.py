"""The GPU benchmark runs from end to end on a CPU, and its arithmetic is right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("train_gpu", ROOT / "benchmarks" / "train_gpu.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_one_command_gives_a_table_and_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "train_gpu.py")),
            *("--device", "cpu", "--shape", "tiny", "--layers", "1", "--vocabulary", "101", "--steps", "3"),
            *("--micro-batches", "2", "--sides", "ours", "ours-te-fp8", "trainer"),
            *("--out", str(tmp_path / "results.json")),
        ],
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    report = json.loads((tmp_path / "results.json").read_text())
    ours, fp8, trainer = report["rows"]
    for row in (ours, trainer):
        assert len(row["seconds"]) == 3
        assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(2 * 64)
        assert row["peak_memory_bytes"] > 1e8
    assert fp8["skipped"] == "transformer-engine is not installed"
    assert len(report["matmul_peak_flops"]) == 2
    assert report["versions"]["torch"] and report["hardware"]["cores"]
    table = done.stdout[done.stdout.index("matmul peak") :]
    assert "MFU" in table and "trainer" in table


def test_a_layer_is_the_slope(benchmark) -> None:
    """4 layers in 1.0 s and 8 in 1.6: 0.15 s a layer, 0.4 s for the rest; 32 layers take 5.2 s."""
    import argparse

    options = argparse.Namespace(micro_batch=1, micro_batches=8, shape="llama-2-7b")
    row = benchmark.extrapolated("ours", 32_000, {4: 1.0, 8: 1.6}, options)
    assert row["layer_seconds"] == pytest.approx(0.15)
    assert row["rest_seconds"] == pytest.approx(0.4)
    assert row["tokens_per_second"] == pytest.approx(8 * 4096 / 5.2)
    # Llama-2-7B has 6.738 billion parameters, of which 6.607 billion are in matrices of the forward pass.
    per_token = 6 * (6_738_415_616 - 32_000 * 4096 - 65 * 4096) + 12 * 32 * 4096 * 4096
    assert row["tflops_full_attention"] == pytest.approx(8 * 4096 / 5.2 * per_token / 1e12)


def test_published_sizes(benchmark) -> None:
    for shape, billions in (("tinyllama-1.1b", 1.1), ("llama-2-7b", 6.74), ("mistral-7b", 7.24)):
        spec = benchmark.spec_of(shape, benchmark.SHAPES[shape]["layers"], 32_000)
        assert spec.parameters == pytest.approx(billions * 1e9, rel=1e-3)
