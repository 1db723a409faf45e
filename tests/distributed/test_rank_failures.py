"""One rank fails: every process is gone soon, that rank alone is named, and what all were doing is on disk."""

import os
import pickle
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from patience import patience
from training_case import begin, server, write_graft, write_tokens

from tsugiki.experiment.errors import TsugikiError
from tsugiki.pretrain.runtime.job import FOLLOWED_EXIT_CODE, TrainJob
from tsugiki.pretrain.training.launch import raise_for_status

FAULT = """
import os, signal, time, torch
from tsugiki.pretrain.training.step import TrainingStep
from tsugiki.pretrain.training.samples.reader import BatchReader
def stuck(*_):  # as NCCL's teardown is while a peer waits in a collective
    time.sleep(600)
torch.distributed.destroy_process_group = stuck
gradients, read = TrainingStep.gradients, BatchReader.step
def fail(number):
    FAILURE
def step(self, number):
    if number == 2 and torch.distributed.get_rank() == RANK and WHERE == "reading":
        fail(number)
    self.number = number
    BatchReader.number = number
    return read(self, number)
def compute(self, *given):
    answer = gradients(self, *given)
    if BatchReader.number == 2 and torch.distributed.get_rank() == RANK and WHERE == "computing":
        fail(2)
    return answer
BatchReader.step, TrainingStep.gradients = step, compute
"""
STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("failing")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.mark.parametrize(
    ("rank", "where", "failure", "told"),
    [
        (3, "computing", "raise ValueError('a bad row')", "ValueError: a bad row"),
        (0, "computing", "raise torch.OutOfMemoryError('CUDA out of memory')", "out of memory"),
        (1, "reading", "raise OSError(5, 'Input/output error')", "Input/output error"),
        (2, "computing", "os.kill(os.getpid(), signal.SIGKILL)", "a training process died"),
        (0, "reading", "os.kill(os.getpid(), signal.SIGKILL)", "a training process died"),
        (1, "reading", "time.sleep(600)", "training hangs"),
        (2, "reading", STOPPED, "training hangs"),
    ],
    ids=["error", "memory", "data", "killed", "first rank killed", "hang", "stopped"],
)
def test_a_rank_that_fails_ends_the_job(
    case: Path, tmp_path: Path, rank: int, where: str, failure: str, told: str
) -> None:
    hangs = told == "training hangs"
    fault = FAULT.replace("FAILURE", failure).replace("RANK", str(rank)).replace("WHERE", repr(where))
    run = begin(
        case,
        tmp_path,
        fault=fault,
        parallel={"tensor": 2, "data": 2},
        watchdog_seconds=8.0 if hangs else 480.0,
        save_interval_steps=1000,
    )
    run.wait_for_step(2)
    ranks = psutil.Process(run.pid).children()
    assert len(ranks) == 4
    failed = time.monotonic()
    while any(item.is_running() and item.status() != psutil.STATUS_ZOMBIE for item in ranks):
        if time.monotonic() - failed > patience(30):
            os.kill(run.pid, signal.SIGKILL)
            pytest.fail("the ranks are still there")
        time.sleep(0.05)
    seconds = time.monotonic() - failed
    status = server().wait(run.pid)
    assert seconds < patience(28 if failure == STOPPED else 20 if hangs else 10), seconds

    job = TrainJob.model_validate_json((tmp_path / ".work" / "job.json").read_bytes())
    with pytest.raises(TsugikiError) as caught:
        raise_for_status(job, 4, status)
    assert told in str(caught.value) and f"rank {rank}" in str(caught.value), caught.value
    blamed = [
        path.stem for path in (tmp_path / ".work" / "errors").iterdir() if path.read_bytes().strip(b" ")
    ]
    assert blamed == [f"rank_{rank}"]
    dead = failure == STOPPED or "SIGKILL" in failure
    logs = tmp_path / ".work" / "logs"
    for item in range(4):
        if item == rank and dead:
            continue
        assert "in _loop" in (logs / f"rank_{item}.log").read_text(), f"stacks of rank {item}"
        recorded = pickle.loads((logs / f"flight_recorder_{item}").read_bytes())
        assert any("all_reduce" in entry["profiling_name"] for entry in recorded["entries"])


AS_SLURM_STARTS_IT = """
import atexit, os, sys, time, traceback
from pathlib import Path
os.environ.update(RANK="<NUMBER>", WORLD_SIZE="2", LOCAL_RANK="<NUMBER>", MASTER_ADDR="127.0.0.1", MASTER_PORT="<PORT>")
sys.path.insert(0, "<SUPPORT>")
from training_case import settings
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pretrain.train import run
from tsugiki.pretrain.training.step import TrainingStep
atexit.register(time.sleep, 600)  # as NCCL's teardown
gradients = TrainingStep.gradients
def compute(self, *given):
    if <NUMBER> == 1:
        raise ValueError("a bad row")
    return gradients(self, *given)
TrainingStep.gradients = compute
inputs = {name: Path("<CASE>") / name for name in ("graft", "tokens")}
try:
    run(settings(parallel={"tensor": 2}), inputs, Path("<OUT>"), StageContext(seed=5))
except BaseException:
    traceback.print_exc()
finally:
    atexit._run_exitfuncs()  # what the interpreter does at its end
"""


def test_ranks_that_slurm_started_end_with_their_own_status(case: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    support = str(Path(__file__).parents[1] / "support")
    words = {"<PORT>": port, "<SUPPORT>": support, "<CASE>": str(case), "<OUT>": str(tmp_path)}
    code = AS_SLURM_STARTS_IT
    for word, value in words.items():
        code = code.replace(word, value)
    started = time.monotonic()
    codes = [code.replace("<NUMBER>", str(rank)) for rank in range(2)]
    assert server().statuses(tmp_path / "console", *codes) == [FOLLOWED_EXIT_CODE, 1]
    assert time.monotonic() - started < patience(20)
    assert "another rank" not in (tmp_path / "console.1").read_text()
