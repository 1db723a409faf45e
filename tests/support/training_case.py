"""A tiny training problem: a random Hugging Face model imported to Megatron, and tokens of two languages.

The vocabulary has 101 rows, of which 11 count as added; two tensor-parallel ranks pad it to 112.
"""

import atexit
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy

from tsugiki.experiment.artefacts.indexed_dataset import write_indexed
from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource, save_document_bytes
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.runtime.job import TrainJob
from tsugiki.pretrain.train import run
from tsugiki.pretrain.training.launch import raise_for_status, write_job

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


def write_graft(
    directory: Path,
    family: str = "llama",
    change: Callable[[Any], None] = lambda model: None,
    **overrides: object,
) -> None:
    """`graft/` of a random model beside its Hugging Face directory."""
    from tsugiki.pretrain.conversion.import_hf import write_import
    from tsugiki.pretrain.convert_config import GraftConfig

    hf = directory / "hf"
    model = hf_model(family, **overrides)
    change(model)
    model.save_pretrained(hf)
    graft = directory / "graft"
    graft.mkdir(parents=True)
    write_import(hf, graft, tokenizer_dir=None, config=GraftConfig())
    report = json.loads((graft / "graft.json").read_text())
    (graft / "graft.json").write_text(json.dumps({**report, "kept_rows": BASE_ROWS}))


def write_tokens(
    directory: Path,
    steps: int = STEPS,
    change: Callable[[list[list[int]]], list[list[int]]] = lambda documents: documents,
    signed: bool = False,
) -> None:
    """`tokens/`: arithmetic sequences, so that there is something to learn; `change` makes other documents,
    `signed` stores ids as int32."""
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
            changed = change(lists)
            totals[split] = write_indexed(
                tokens / f"{language}{split}", changed, 100_000 if signed else VOCABULARY
            )
            if split:
                save_document_bytes(tokens, f"{language}{split}", [3 * len(ids) for ids in changed])
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
            "micro_batch": 4,
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


class Server:
    """The process that imported Megatron; see training_server.py."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                str(Path(__file__).with_name("training_server.py")),
                str(writing),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[writing],
        )
        os.close(writing)
        self._answers = os.fdopen(reading)
        atexit.register(self.close)

    def _ask(self, request: dict[str, object]) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answers.readline())

    def start(self, job: TrainJob, processes: int, environment: dict[str, str], fault: str) -> int:
        """Process id of the launcher of a training; its console goes to console.log."""
        return self._ask(
            {
                "start": [str(write_job(job)), str(processes)],
                "environment": environment,
                "console": str(job.output_dir / "console.log"),
                "fault": fault,
            }
        )["pid"]

    def statuses(self, console: Path, *codes: str) -> list[int]:
        """Run code where Megatron is imported, in a process of its own; several at once. Their exit statuses."""
        pids = [
            self._ask({"start": None, "environment": {}, "console": f"{console}.{number}", "fault": code})[
                "pid"
            ]
            for number, code in enumerate(codes)
        ]
        return [self.wait(pid) for pid in pids]

    def execute(self, console: Path, *codes: str) -> None:
        """The same of code that must not fail."""
        for number, status in enumerate(self.statuses(console, *codes)):
            assert status == 0, Path(f"{console}.{number}").read_text()

    def wait(self, pid: int) -> int:
        """Its exit status."""
        return self._ask({"wait": pid})["status"]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def server() -> Server:
    """One for all tests of this process."""
    return Server()


def train(
    case: Path, output: Path, environment: dict[str, str] | None = None, fault: str = "", **changes: object
) -> StageResult:
    """Run the stage; only that its processes are forked from the server."""

    output.mkdir(parents=True, exist_ok=True)
    inputs = {"graft": case / "graft", "tokens": case / "tokens"}
    if (case / "reference").is_dir():
        inputs["reference"] = case / "reference"
    with forked(environment, fault):
        return run(settings(**changes), inputs, output, StageContext(seed=5))


@contextmanager
def forked(environment: dict[str, str] | None = None, fault: str = "") -> Iterator[None]:
    """Trainings, and Megatron's side of a verification, are forked from the server instead of started anew."""

    def run_here(job: TrainJob, processes: int, *_: object) -> None:
        status = server().wait(server().start(job, processes, environment or {}, fault))
        raise_for_status(job, processes, status)

    with (
        mock.patch("tsugiki.pretrain.train.run_here", run_here),
        mock.patch("tsugiki.pretrain.conversion.verify.subprocess", ForkedVerification),
    ):
        yield


class ForkedVerification:
    """What verification uses of ``subprocess``: `python -m …verify_megatron REQUEST`, forked from the server."""

    PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL

    class Popen:
        """Runs when its end is waited for."""

        def __init__(self, command: list[str], **_: object) -> None:
            assert command[-2] == "tsugiki.pretrain.conversion.verify_megatron"
            self._request = Path(command[-1])
            self.returncode = 0

        def communicate(self) -> tuple[bytes, bytes]:
            server().execute(
                self._request.with_suffix(".log"),
                "import os; from pathlib import Path\n"
                "from tsugiki.pretrain.conversion.verify_megatron import main\n"
                "for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'): os.environ.pop(name, None)\n"
                f"main(Path({str(self._request)!r}))",
            )
            return b"", b""


def console(output: Path) -> str:
    """What the last `train` said."""
    return (output / "console.log").read_text()


@dataclass(frozen=True)
class Running:
    """A training that goes on in the background."""

    pid: int
    output: Path

    def wait_for_step(self, step: int, seconds: float = 600) -> None:
        """Until that step is on the console."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            said = re.findall(r"^step +(\d+)/\d+  loss", console(self.output), re.MULTILINE)
            if said and int(said[-1]) >= step:
                return
            time.sleep(0.005)
        raise AssertionError(f"step {step} was not reached: {console(self.output)}")

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Signal it and wait; SIGKILL as a node failure or the out-of-memory killer would. The status."""
        os.kill(self.pid, number)
        return server().wait(self.pid)


def begin(case: Path, output: Path, fault: str = "", **changes: object) -> Running:
    """Start the training alone, in the background."""
    output.mkdir(parents=True, exist_ok=True)
    config = settings(**changes)
    job = TrainJob(
        config=config, graft_dir=case / "graft", tokens_dir=case / "tokens", output_dir=output, seed=5
    )
    processes = config.parallel.model_processes * (config.parallel.data or 1)
    return Running(server().start(job, processes, {}, fault), output)


def lines(output: Path) -> list[dict[str, float]]:
    """metrics.jsonl."""
    return [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]


def curve(output: Path, key: str = "train/loss") -> list[float]:
    """One metric over the steps."""
    return [line[key] for line in lines(output) if key in line]


def weights(output: Path, step: int) -> dict[str, bytes]:
    """Every tensor of a checkpoint, as bytes: model, moments, everything."""
    from tsugiki.pretrain.formats.torch_dist_reader import DistReader

    reader = DistReader(output / "checkpoints" / f"iter_{step:07d}")
    tensors = {
        key: reader.read(key, tuple((0, size) for size in tensor.shape)).numpy().tobytes()
        for key, tensor in reader.tensors.items()
    }
    reader.close()
    return tensors


def checkpoint_tensor(directory: Path, key: str):
    """One whole tensor of a checkpoint."""
    from tsugiki.pretrain.formats.torch_dist_reader import DistReader

    reader = DistReader(directory)
    tensor = reader.read(key, tuple((0, size) for size in reader.tensors[key].shape))
    reader.close()
    return tensor


def start(case: Path, output: Path, **changes: object) -> subprocess.Popen[str]:
    """The stage in a process of its own, to be killed."""
    output.mkdir(parents=True, exist_ok=True)
    script = (
        "import sys; from pathlib import Path; from tsugiki.pretrain.config import TrainConfig; "
        "from tsugiki.pretrain.train import run; from tsugiki.experiment.run.stage import StageContext; "
        "from tsugiki.experiment.errors import TsugikiError\n"
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


def wait_for_step(output: Path, step: int, process: subprocess.Popen[str], seconds: float = 600) -> None:
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
