"""Tokens per second of one training process against transformers' Trainer: same model, batch, dtype, threads.

    python benchmarks/train_cpu.py [--steps 30] [--threads 1]

Each side runs in a process of its own, one after the other; the first third of the steps is not
counted. Prints the command, the machine, the tokens per second of both, and the time from the command
to the first finished step. Then ours again with every step logged to MLflow (SQLite): by the launcher, as on
one machine, and by the rank, as in a Slurm job. A log line's cost is what the rank spends on it (norms of the
embedding rows included), its share that of a step at the default interval of ten steps.
`train_loop.py` compares with a loop without Trainer, and at the size of a real model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, SEQUENCE, BATCH = 8192, 256, 8
LOG_INTERVAL = 10
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": SEQUENCE,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def documents(count: int, sequence: int = SEQUENCE, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Random documents of one sequence length each."""
    import numpy

    generator = numpy.random.default_rng(0)
    return [[1, *generator.integers(3, vocabulary, sequence).tolist(), 2] for _ in range(count)]


def prepare(
    directory: Path, steps: int, shape: dict[str, Any] = SHAPE, batch: int = BATCH, sequence: int = SEQUENCE
) -> None:
    """The model as a Hugging Face directory and imported; the tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tsugiki.experiment.artefacts.indexed_dataset import write_indexed
    from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource
    from tsugiki.pretrain.conversion.import_hf import write_import
    from tsugiki.pretrain.convert_config import GraftConfig

    vocabulary = shape["vocab_size"]
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(directory / "hf")
    for name in ("graft", "tokens"):
        (directory / name).mkdir()
    write_import(directory / "hf", directory / "graft", tokenizer_dir=None, config=GraftConfig())
    count, tokens = write_indexed(
        directory / "tokens" / "x", documents(steps * batch, sequence, vocabulary), vocabulary
    )
    source = MixtureSource(
        name="x", language="en", prefix="x", heldout_prefix=None, documents=count, tokens=tokens,
        bytes=tokens, heldout_documents=0, heldout_tokens=0, heldout_bytes=0, share=1.0,
        planned_tokens=tokens, epochs=1.0,
    )  # fmt: skip
    Mixture(
        vocabulary_size=vocabulary,
        bos_id=1,
        eod_id=2,
        total_tokens=steps * batch * sequence,
        sources=[source],
    ).save(directory / "tokens")


def ours(directory: Path, steps: int, threads: int, mlflow: bool = False) -> list[float]:
    """Times of finished steps."""
    from tsugiki.experiment.run.stage import StageContext
    from tsugiki.experiment.tracking.config import TrackingConfig
    from tsugiki.experiment.tracking.runs import Trackers, open_run
    from tsugiki.pretrain.config import TrainConfig
    from tsugiki.pretrain.train import run

    config = TrainConfig.model_validate(
        {
            "sequence_length": SEQUENCE, "micro_batch": BATCH, "global_batch": BATCH, "precision": "fp32",
            "threads": threads, "log_interval_steps": 1, "save_interval_steps": steps,
            "validation_interval_steps": None,
        }
    )  # fmt: skip
    output = directory / f"out-{uuid.uuid4()}"
    output.mkdir()
    tracker = open_run(TrackingConfig(), output, "benchmark") if mlflow else Trackers()
    begun = time.process_time()
    run(
        config,
        {"graft": directory / "graft", "tokens": directory / "tokens"},
        output,
        StageContext(tracker=tracker),
    )
    lines = [json.loads(text) for text in (output / "metrics.jsonl").open()]
    lines = [line for line in lines if "train/loss" in line]
    if mlflow:
        counted = lines[len(lines) // 3 :]
        print(
            json.dumps(
                {
                    "line": sum(line["throughput/logging_seconds"] for line in counted) / len(counted),
                    "step": sum(line["throughput/step_seconds"] for line in counted) / len(counted),
                    "launcher": (time.process_time() - begun) / len(lines),
                }
            )
        )
    return [line["seconds"] for line in lines]


def theirs(directory: Path, steps: int, threads: int) -> list[float]:
    """Times of finished steps of transformers' Trainer."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(threads)
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.time())

    rows = [{"input_ids": ids[:SEQUENCE], "labels": ids[:SEQUENCE]} for ids in documents(steps * BATCH)]
    Trainer(
        model=LlamaForCausalLM.from_pretrained(directory / "hf"),
        args=TrainingArguments(
            output_dir=str(directory / "trainer"), per_device_train_batch_size=BATCH, max_steps=steps,
            use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True,
            adam_beta2=0.95, weight_decay=0.1,
        ),
        train_dataset=rows,
        callbacks=[Clock()],
    ).train()  # fmt: skip
    return times


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=["ours", "theirs", "launcher", "rank"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        arguments = (options.directory, options.steps, options.threads)
        if options.side == "rank":
            os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
        times = theirs(*arguments) if options.side == "theirs" else ours(*arguments, options.side != "ours")
        (options.directory / f"{options.side}.json").write_text(json.dumps(times))
        return
    print(" ".join([Path(sys.executable).name, *sys.argv]))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
    }
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        prepare(directory, options.steps)
        for side in ("ours", "theirs", "launcher", "rank"):
            start = time.time()
            result = subprocess.run(
                [
                    *(sys.executable, "-W", "ignore", __file__, "--side", side, "--directory", folder),
                    *("--steps", str(options.steps), "--threads", str(options.threads)),
                ],
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            times = json.loads((directory / f"{side}.json").read_text())
            skip = len(times) // 3
            rates[side] = (len(times) - 1 - skip) * BATCH * SEQUENCE / (times[-1] - times[skip])
            if side in ("ours", "theirs"):
                print(
                    f"{side:>7}: {rates[side]:,.0f} tokens/s, first step after {times[0] - start:.1f} s",
                    flush=True,
                )
                continue
            cost = json.loads(result.stdout.splitlines()[-1])
            print(
                f"every step to MLflow by the {side}: {rates[side]:,.0f} tokens/s; "
                f"a log line takes {cost['line'] * 1e3:.1f} ms of a {cost['step'] * 1e3:.0f} ms step, "
                f"{cost['line'] / cost['step'] / LOG_INTERVAL:.2%} at {LOG_INTERVAL} steps a line"
                + (
                    f"; the launcher's own CPU time {cost['launcher'] * 1e3:.1f} ms a step"
                    if side == "launcher"
                    else ""
                ),
                flush=True,
            )
    print(f"ours / theirs: {rates['ours'] / rates['theirs']:.2f}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
