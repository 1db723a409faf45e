"""A tiny training problem: a random Hugging Face model imported to Megatron, and tokens of two languages.

The vocabulary has 101 rows, of which 11 count as added; two tensor-parallel ranks pad it to 112.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy

from experiment.mixture import Mixture, MixtureSource
from experiment.stage import StageContext, StageResult
from pretrain.config import TrainConfig
from pretrain.indexed import write_indexed
from pretrain.train import run

VOCABULARY, BASE_ROWS, BOS, EOD = 101, 90, 1, 2
SEQUENCE, GLOBAL_BATCH, STEPS = 32, 8, 20
ROOT = Path(__file__).resolve().parents[2]

SHAPES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 12},
    "gemma": {"head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"},
    "qwen2": {},
}


def hf_model(family: str, **overrides: object):
    """A random transformers model of a family, deterministic."""
    import torch
    import transformers

    name = {"llama": "Llama", "mistral": "Mistral", "gemma": "Gemma", "qwen2": "Qwen2"}[family]
    config = getattr(transformers, f"{name}Config")(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.1,
            "bos_token_id": BOS,
            "eos_token_id": EOD,
            "pad_token_id": None,
            **SHAPES[family],
            **overrides,
        }
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def write_graft(directory: Path, family: str = "llama", **overrides: object) -> None:
    """`graft/` of a random model beside its Hugging Face directory."""
    from pretrain.convert_config import GraftConfig
    from pretrain.convert_import import write_import

    hf = directory / "hf"
    hf_model(family, **overrides).save_pretrained(hf)
    graft = directory / "graft"
    graft.mkdir(parents=True)
    write_import(hf, graft, tokenizer_dir=None, config=GraftConfig())
    report = json.loads((graft / "graft.json").read_text())
    (graft / "graft.json").write_text(json.dumps({**report, "kept_rows": BASE_ROWS}))


def write_tokens(directory: Path, steps: int = STEPS) -> None:
    """`tokens/`: arithmetic sequences, so that there is something to learn."""
    tokens = directory / "tokens"
    tokens.mkdir(parents=True)
    random = numpy.random.default_rng(7)
    sources = []
    for number, (language, count) in enumerate((("en", 300), ("ja", 200))):
        totals = {}
        for split, documents in (("", count), (".heldout", 20)):
            lists = []
            for _ in range(documents):
                start, length = random.integers(3, VOCABULARY), random.integers(10, 60)
                text = (start + (number + 1) * 7 * numpy.arange(length)) % (VOCABULARY - 3) + 3
                lists.append([BOS, *(int(token) for token in text), EOD])
            totals[split] = write_indexed(tokens / f"{language}{split}", lists, VOCABULARY)
        sources.append(
            MixtureSource(
                name=language,
                language=language,
                prefix=language,
                heldout_prefix=f"{language}.heldout",
                documents=totals[""][0],
                tokens=totals[""][1],
                bytes=totals[""][1] * 3,
                heldout_documents=totals[".heldout"][0],
                heldout_tokens=totals[".heldout"][1],
                heldout_bytes=totals[".heldout"][1] * 3,
                share=0.5,
                planned_tokens=steps * GLOBAL_BATCH * SEQUENCE // 2,
                epochs=1.0,
            )
        )
    Mixture(
        vocabulary_size=VOCABULARY,
        bos_id=BOS,
        eod_id=EOD,
        total_tokens=steps * GLOBAL_BATCH * SEQUENCE,
        sources=sources,
    ).save(tokens)


def settings(**changes: object) -> TrainConfig:
    """The train section of the case, with changes."""
    return TrainConfig.model_validate(
        {
            "sequence_length": SEQUENCE,
            "micro_batch": 2,
            "global_batch": GLOBAL_BATCH,
            "precision": "fp32",
            "optimizer": {"learning_rate": 3e-3, "minimum_learning_rate": 3e-4},
            "schedule": {"kind": "cosine", "warmup_tokens": 640},
            "save_interval_steps": STEPS,
            "log_interval_steps": 1,
            "validation_interval_steps": None,
            **changes,
        }
    )


def train(case: Path, output: Path, **changes: object) -> StageResult:
    """Run the stage."""
    output.mkdir(parents=True, exist_ok=True)
    inputs = {"graft": case / "graft", "tokens": case / "tokens"}
    return run(settings(**changes), inputs, output, StageContext(seed=5))


def lines(output: Path) -> list[dict[str, float]]:
    """metrics.jsonl."""
    return [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]


def curve(output: Path, key: str = "train/loss") -> list[float]:
    """One metric over the steps."""
    return [line[key] for line in lines(output) if key in line]


def weights(output: Path, step: int) -> dict[str, bytes]:
    """Every tensor of a checkpoint, as bytes: model, moments, everything."""
    from pretrain.dist_files import DistReader

    reader = DistReader(output / "checkpoints" / f"iter_{step:07d}")
    tensors = {
        key: reader.read(key, tuple((0, size) for size in tensor.shape)).numpy().tobytes()
        for key, tensor in reader.tensors.items()
    }
    reader.close()
    return tensors


def start(case: Path, output: Path, **changes: object) -> subprocess.Popen[str]:
    """The stage in a process of its own, to be killed."""
    output.mkdir(parents=True, exist_ok=True)
    script = (
        "import sys; from pathlib import Path; from pretrain.config import TrainConfig; "
        "from pretrain.train import run; from experiment.stage import StageContext; "
        "from experiment.errors import TsugikiError\n"
        "case, output = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "try:\n"
        "    run(TrainConfig.model_validate_json(sys.argv[3]),"
        " {'graft': case/'graft', 'tokens': case/'tokens'}, output, StageContext(seed=5))\n"
        "except TsugikiError as error:\n"
        "    print(error, file=sys.stderr); sys.exit(error.exit_code)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(case), str(output), settings(**changes).model_dump_json()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(output: Path, step: int, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until metrics.jsonl has that step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        path = output / "metrics.jsonl"
        if path.exists() and any(line["step"] >= step for line in lines_so_far(path)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.poll()}")


def lines_so_far(path: Path) -> list[dict[str, float]]:
    """Whole lines of a file that is being written."""
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, as a node failure or the out-of-memory killer would."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
