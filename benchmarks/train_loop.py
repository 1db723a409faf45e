"""CPU seconds and peak memory of a training step against a plain loop of transformers and torch's AdamW.

    python benchmarks/train_loop.py [--shape toy|135m] [--steps 24] [--rounds 2]

Same shape (random weights), batch, fp32, one thread, gradients clipped. The plain loop is the usual one:
`model(labels=...)`, `backward`, `clip_grad_norm_`, `AdamW.step`, `zero_grad`. Each side is a process of its own, and
both run at the same time, so that whatever else the machine does meets both alike. The first third of the steps is not
counted; the median of the others is a round's figure. Prints each round, the ratio of the better rounds, and peak
memory up to the last step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_cpu  # noqa: E402

SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "toy": (train_cpu.SHAPE, train_cpu.BATCH),
    # SmolLM2-135M's.
    "135m": (
        {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
            "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        },
        4,
    ),
}  # fmt: skip
SEQUENCE = train_cpu.SEQUENCE


class Clock:
    """CPU time of this process at the end of each step, and its peak memory by then."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.peak = 0

    def tick(self) -> None:
        """A step is done."""
        self.times.append(time.process_time())
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def result(self) -> dict[str, float]:
        """Median CPU seconds of a step, peak in MB."""
        counted = self.times[len(self.times) // 3 :]
        steps = [after - before for before, after in itertools.pairwise(counted)]
        return {"seconds": statistics.median(steps), "megabytes": self.peak / 1024}


def plain(directory: Path, shape: dict[str, Any], batch: int, steps: int) -> dict[str, float]:
    """The loop that one would write."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(directory / "hf", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    rows = train_cpu.documents(steps * batch, SEQUENCE, shape["vocab_size"])
    clock = Clock()
    for step in range(steps):
        ids = torch.tensor([row[:SEQUENCE] for row in rows[step * batch : (step + 1) * batch]])
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.result()


def ours(directory: Path, batch: int, steps: int) -> dict[str, float]:
    """`train` as a rank of its own, in this process."""
    from tsugiki.experiment.run.stage import StageContext
    from tsugiki.pretrain.config import TrainConfig
    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29534"}
    import_megatron()
    from tsugiki.pretrain.train import run
    from tsugiki.pretrain.training.step import TrainingStep

    clock = Clock()
    update = TrainingStep.update

    def timed(step: TrainingStep, *arguments: Any) -> None:
        update(step, *arguments)
        clock.tick()

    TrainingStep.update = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=directory) as output:
        config = {
            "sequence_length": SEQUENCE, "micro_batch": batch, "global_batch": batch, "precision": "fp32",
            "threads": 1, "save_interval_steps": steps, "validation_interval_steps": None,
        }  # fmt: skip
        inputs = {"graft": directory / "graft", "tokens": directory / "tokens"}
        run(TrainConfig.model_validate(config), inputs, Path(output), StageContext())
    return clock.result()


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=list(SHAPES), default="toy")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape, batch = SHAPES[options.shape]
    if options.side:
        result = (
            ours(options.directory, batch, options.steps)
            if options.side == "ours"
            else plain(options.directory, shape, batch, options.steps)
        )
        (options.directory / f"{options.side}.json").write_text(json.dumps(result))
        return
    print(" ".join([Path(sys.executable).name, *sys.argv]))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        train_cpu.prepare(Path(folder), options.steps, shape, batch, SEQUENCE)
        for _ in range(options.rounds):
            results = both(Path(folder), options.shape, options.steps)
            for side, result in results.items():
                print(
                    f"{side:>6}: {result['seconds']:.3f} CPU seconds a step, peak {result['megabytes']:,.0f} MB",
                    flush=True,
                )
                if side not in best or result["seconds"] < best[side]["seconds"]:
                    best[side] = result
    print(
        f"plain / ours: {best['plain']['seconds'] / best['ours']['seconds']:.2f} x; "
        f"memory ours / plain: {best['ours']['megabytes'] / best['plain']['megabytes']:.2f}"
    )


def both(directory: Path, shape: str, steps: int) -> dict[str, dict[str, float]]:
    """The results of both sides, run at the same time."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    running = {
        side: subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", __file__, "--side", side, "--shape", shape),
                *("--directory", str(directory), "--steps", str(steps)),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for side in ("plain", "ours")
    }
    for process in running.values():
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return {side: json.loads((directory / f"{side}.json").read_text()) for side in running}


if __name__ == "__main__":
    main()
