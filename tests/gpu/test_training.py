"""Whole training runs: GPU against CPU, windows and documents, resuming; the CPU run is the reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_case
from training_case import ROOT, STEPS, curve, lines, settings, weights, write_graft, write_tokens

ON = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]
SCRIPT = """
import sys
from pathlib import Path
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.train import run
case, output = Path(sys.argv[1]), Path(sys.argv[2])
output.mkdir(parents=True, exist_ok=True)
config = TrainConfig.model_validate_json(sys.argv[3])
run(config, {"graft": case / "graft", "tokens": case / "tokens"}, output, StageContext(seed=5))
"""


def train(case: Path, name: str, device: str, **changes: object) -> Path:
    """Run the stage in a process that sees the GPU or not; returns its directory."""
    output = case / name
    if device == "cpu" and not torch.cuda.is_available():  # nothing to hide
        training_case.train(case, output, **changes)
        return output
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", SCRIPT, str(case), str(output)),
            settings(**changes).model_dump_json(),
        ],
        env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return output


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    write_graft(directory, request.param)
    write_tokens(directory)
    train(directory, "reference", "cpu")
    return directory


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes", [{}, {"reset_attention_mask": True, "reset_position_ids": True}, {"z_loss": 1e-3}], ids=str
)
def test_gpu_and_cpu_have_the_same_losses(case: Path, changes: dict[str, object]) -> None:
    """In fp32, with every fast path; the sums are in another order."""
    reference = train(case, f"cpu-{len(changes)}{'z_loss' in changes}", "cpu", **changes)
    output = train(case, f"cuda-{len(changes)}{'z_loss' in changes}", "cuda", **changes)
    assert curve(output) == pytest.approx(curve(reference), abs=1e-4)
    norms = curve(reference, "train/grad_norm")
    assert curve(output, "train/grad_norm") == pytest.approx(norms, rel=1e-3)


@pytest.mark.gpu
def test_bf16_follows_fp32(case: Path) -> None:
    output = train(case, "bf16", "cuda", precision="bf16")
    assert curve(output) == pytest.approx(curve(case / "reference"), abs=3e-2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.mark.parametrize("device", ON)
def test_resumed_training_is_the_same(small: Path, device: str) -> None:
    """Half of the steps, then the rest by the same command; bitwise on a CPU.

    On a GPU some kernels add in an order of their own: losses agree to rounding.
    """
    whole = train(small, f"whole-{device}", device)
    halves = train(small, f"halves-{device}", device, save_interval_steps=STEPS // 2)
    # What a killed run leaves: the checkpoint of half of the steps, and lines written after it.
    for path in (halves / "checkpoints").glob(f"iter_{STEPS:07d}"):
        (path / "checkpoint.json").unlink()
    train(small, f"halves-{device}", device, save_interval_steps=STEPS // 2)
    assert [line["step"] for line in lines(halves) if "train/loss" in line] == list(range(1, STEPS + 1))
    if device == "cpu":
        assert curve(halves) == curve(whole)
        assert weights(halves, STEPS) == weights(whole, STEPS)
    else:
        assert curve(halves) == pytest.approx(curve(whole), abs=1e-5)


@pytest.mark.gpu
def test_a_run_changes_between_cpu_and_gpu(small: Path) -> None:
    """Checkpoints do not know what wrote them."""
    whole = train(small, "whole", "cpu")
    mixed = train(small, "mixed", "cpu", save_interval_steps=STEPS // 2)
    for path in (mixed / "checkpoints").glob(f"iter_{STEPS:07d}"):
        (path / "checkpoint.json").unlink()
    train(small, "mixed", "cuda", save_interval_steps=STEPS // 2)
    assert curve(mixed) == pytest.approx(curve(whole), abs=1e-4)


@pytest.mark.gpu
def test_fp8_learns(small: Path) -> None:
    """The shapes of the case are too small for fp8 products; a wider model."""
    pytest.importorskip("transformer_engine")
    write_graft(
        small / "wide", hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2
    )
    write_tokens(small / "wide")
    bf16 = train(small / "wide", "bf16", "cuda", precision="bf16")
    fp8 = train(small / "wide", "fp8", "cuda", precision="fp8")
    assert curve(fp8) == pytest.approx(curve(bf16), abs=0.1)
    assert curve(fp8)[-1] < curve(fp8)[0] - 0.5
