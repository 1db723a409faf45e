"""Training goes on after kills, stops, damaged checkpoints, full disks and dead processes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from patience import patience
from training_case import (
    ROOT,
    STEPS,
    Running,
    begin,
    console,
    curve,
    lines,
    server,
    start,
    train,
    wait_for_step,
    weights,
    write_graft,
    write_tokens,
)

from tsugiki.experiment.errors import CheckpointError, Interrupted, TrainingError
from tsugiki.pretrain.runtime.job import INTERRUPTED_EXIT_CODE, TrainJob
from tsugiki.pretrain.runtime.signals import STOP_SIGNALS
from tsugiki.pretrain.training.launch import raise_for_status

EVERY_FOUR = {"save_interval_steps": 4, "keep_last_checkpoints": 9}

SLOW_WRITES = """
import time
from torch.distributed.checkpoint import FileSystemWriter
original = FileSystemWriter.write_data
def write_data(self, plan, planner):
    time.sleep(SECONDS if "iter_0000004" not in str(self.path) else 0)
    return original(self, plan, planner)
FileSystemWriter.write_data = write_data
"""
WAITING_WRITES = """
import time
from pathlib import Path
from torch.distributed.checkpoint import FileSystemWriter
original = FileSystemWriter.write_data
def write_data(self, plan, planner):
    step = int(Path(self.path).name.removeprefix("iter_"))
    metrics = Path(self.path).parents[1] / "metrics.jsonl"
    while 4 < step < STEPS and f'"step": {step + 1},' not in metrics.read_text():
        time.sleep(0.02)
    return original(self, plan, planner)
FileSystemWriter.write_data = write_data
"""
FAILING_WRITE = """
from torch.distributed.checkpoint import FileSystemWriter
original = FileSystemWriter.write_data
def write_data(self, plan, planner):
    if "iter_0000008" in str(self.path):
        raise OSError(28, "No space left on device")
    return original(self, plan, planner)
FileSystemWriter.write_data = write_data
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.fixture(scope="module")
def uninterrupted(case: Path) -> Path:
    train(case, case / "uninterrupted", **EVERY_FOUR)
    return case / "uninterrupted"


def latest(output: Path) -> int:
    return json.loads((output / "checkpoints" / "latest.json").read_text())["iteration"]


def is_complete(output: Path, step: int) -> bool:
    return (output / "checkpoints" / f"iter_{step:07d}" / "checkpoint.json").is_file()


def test_killed_at_ten_random_moments_ends_in_the_same_checkpoint(case: Path, uninterrupted: Path) -> None:
    """Every other attempt saves in the background; some kills come while a checkpoint is being written."""
    output = case / "killed"
    generator = random.Random(3)
    reached = []
    for attempt in range(10):
        run = begin(case, output, save_interval_steps=2, asynchronous_checkpoints=attempt % 2 == 1)
        run.wait_for_step(min(2 * attempt + generator.randint(1, 2), STEPS - 1))
        time.sleep(generator.uniform(0, 0.08))
        assert run.kill() == -signal.SIGKILL
        reached.append(latest(output) if (output / "checkpoints" / "latest.json").exists() else 0)
    assert reached == sorted(reached) and len(set(reached)) > 4, "it went on from where it was"
    assert reached[-1] < STEPS
    train(case, output, save_interval_steps=2)
    assert weights(output, STEPS) == weights(uninterrupted, STEPS)
    assert curve(output) == curve(uninterrupted)
    assert curve(output, "train/grad_norm") == curve(uninterrupted, "train/grad_norm")


def test_a_stop_saves_and_the_next_run_goes_on(case: Path, uninterrupted: Path) -> None:
    """The real command, with its own processes and signals passed on."""
    output = case / "stopped"
    process = start(case, output, save_interval_steps=100, parallel={"tensor": 2})
    wait_for_step(output, 3, process)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=600)
    assert process.returncode == INTERRUPTED_EXIT_CODE, (out, error)
    assert 3 <= latest(output) < STEPS
    train(case, output, save_interval_steps=100, parallel={"tensor": 2})
    assert curve(output) == pytest.approx(curve(uninterrupted), abs=1e-5)


@pytest.fixture(scope="module")
def every_fourth_line(case: Path) -> Path:
    train(case, case / "lines", log_interval_steps=4)
    return case / "lines"


@pytest.mark.parametrize("number", [signal.SIGKILL, *STOP_SIGNALS], ids=lambda number: number.name)
def test_ended_within_an_interval_of_lines(
    case: Path, every_fourth_line: Path, number: signal.Signals
) -> None:
    """A stop saves and says that it may be continued; the line that follows is the mean over its whole interval."""
    output = case / f"ended-by-{number.name}"
    options = {"log_interval_steps": 4, "save_interval_steps": 3, "keep_last_checkpoints": 99}
    run = begin(case, output, **options)
    run.wait_for_step(8)
    stopped = run.kill(number)
    assert stopped == (-number if number == signal.SIGKILL else INTERRUPTED_EXIT_CODE)
    assert 6 <= latest(output) < STEPS
    train(case, output, **options)
    for key in ("train/loss", "train/grad_norm", "train/bits_per_byte"):
        assert curve(output, key) == curve(every_fourth_line, key)
    assert len(curve(output)) == 5 and min(curve(output, "throughput/tokens_per_second")) > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_stop_during_start_up(case: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Asked while the processes are still importing: nothing is trained, and the run may be continued."""
    process = start(case, tmp_path, parallel={"tensor": 2})
    launcher = psutil.Process(process.pid)
    while not launcher.children() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    out, error = process.communicate(timeout=600)
    assert process.returncode == INTERRUPTED_EXIT_CODE, (out, error)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_stop_of_the_command_before_it_trains(tmp_path: Path, number: signal.Signals) -> None:
    """As soon as the command line handles the signal at all: the same status as for a stop while training."""
    command = [
        sys.executable,
        "-m",
        "tsugiki",
        "run",
        "configs/smoke.yaml",
        "--set",
        f"run_dir={tmp_path}/run",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        (caught,) = re.findall(r"SigCgt:\s+(\w+)", status.read_text())
        if int(caught, 16) >> (number - 1) & 1:
            break
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=600)
    assert process.returncode == INTERRUPTED_EXIT_CODE, error
    assert "run the same command again" in error


def test_a_stop_before_the_first_step(case: Path, tmp_path: Path) -> None:
    """Asked of one rank alone while the model is being built: all of them leave before any step."""
    fault = (
        "import os, signal, torch\nfrom tsugiki.pretrain.training.trainer import BatchReader\noriginal = BatchReader.__init__\n"
        "def init(self, *arguments):\n    if torch.distributed.get_rank() == 1:\n"
        "        os.kill(os.getpid(), signal.SIGUSR2)\n    original(self, *arguments)\n"
        "BatchReader.__init__ = init\n"
    )
    with pytest.raises(Interrupted):
        train(case, tmp_path, fault=fault, parallel={"tensor": 2})
    assert "stopped as asked before the first step" in console(tmp_path)
    assert lines(tmp_path) == []


def test_which_checkpoints_stay(case: Path, tmp_path: Path) -> None:
    """The two newest, and the multiples of eight."""
    train(case, tmp_path, save_interval_steps=2, keep_last_checkpoints=2, keep_checkpoints_every_steps=8)
    left = {int(entry.name.removeprefix("iter_")) for entry in (tmp_path / "checkpoints").glob("iter_*")}
    assert left == {8, 16, 18, 20}
    assert all(is_complete(tmp_path, step) for step in left) and latest(tmp_path) == 20


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "unmarked"])
def test_damaged_newest_checkpoint(case: Path, uninterrupted: Path, damage: str) -> None:
    output = case / damage
    shutil.copytree(uninterrupted, output)
    newest = output / "checkpoints" / f"iter_{STEPS:07d}"
    victim = newest / "__0_0.distcp"
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(content[:-10])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "removed":
        victim.unlink()
    else:  # killed before its last file
        (newest / "checkpoint.json").unlink()
    train(case, output, **EVERY_FOUR)
    said = console(output)
    if damage != "unmarked":
        assert f"checkpoint of step {STEPS} is damaged (__0_0.distcp" in said or "FileNotFoundError" in said
    assert "continuing from the checkpoint of step 16" in said
    assert weights(output, STEPS) == weights(uninterrupted, STEPS)
    events = [line for line in lines(output) if "event" in line]
    assert [(line["step"], line["event"]) for line in events] == [(16, "fallback")] * (damage != "unmarked")
    assert all(f"checkpoint of step {STEPS} is damaged" in str(line["reason"]) for line in events)


UNREADABLE = """
import tsugiki.pretrain.checkpoint.store as checkpoint
original = checkpoint.sha256_file
def sha256_file(path):
    if "iter_0000020/__1" in str(path):
        raise OSError(116, "Stale file handle", str(path))
    return original(path)
checkpoint.sha256_file = sha256_file
"""
UNREADABLE_DIRECTORY = """
from pathlib import Path
original = Path.iterdir
def iterdir(self):
    if self.name == "checkpoints":
        raise PermissionError(13, "Permission denied", str(self))
    return original(self)
Path.iterdir = iterdir
"""


@pytest.mark.parametrize("state", ["damaged", "unmarked", "stale", "forbidden"])
def test_a_run_whose_checkpoints_are_unusable_does_not_begin_anew(
    case: Path, tmp_path: Path, state: str
) -> None:
    """An error that says what is wrong; metrics and checkpoints stay as they are."""
    output, fault = tmp_path / "out", {"stale": UNREADABLE, "forbidden": UNREADABLE_DIRECTORY}.get(state, "")
    options = {"parallel": {"tensor": 2}, "save_interval_steps": 16}
    train(case, output, **options)
    for step in (16, STEPS) if not fault else ():
        victim = (
            output
            / "checkpoints"
            / f"iter_{step:07d}"
            / ("__1_0.distcp", "checkpoint.json")[state == "unmarked"]
        )
        victim.write_bytes(victim.read_bytes()[:-1]) if state == "damaged" else victim.unlink()
    before = {
        path: path.read_bytes() for path in output.rglob("*") if path.is_file() and ".work" not in str(path)
    }
    with pytest.raises(CheckpointError) as caught:
        train(case, output, fault=fault, **options)
    said = str(caught.value)
    if fault:
        assert "cannot read a checkpoint" in said and ("Stale file" in said or "Permission denied" in said)
    else:
        assert "no checkpoint of this training is complete" in said and "--force" in said
        for step in (16, STEPS):
            assert state == "unmarked" or f"checkpoint of step {step} is damaged (__1_0.distcp has" in said
    after = {path: path.read_bytes() for path in before if path.name != "console.log"}
    assert after.items() <= before.items()


@pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "data": 2}])
def test_background_checkpoints_hold_the_step_they_were_begun_at(
    case: Path, uninterrupted: Path, parallel: dict[str, int]
) -> None:
    """Writes begin when a further step is done, which has changed the weights."""
    output, expected = case / f"background-{len(parallel)}", uninterrupted
    options = {**EVERY_FOUR, "parallel": parallel}
    if parallel:
        expected = case / "foreground"
        train(case, expected, **options)
    waiting = WAITING_WRITES.replace("STEPS", str(STEPS))
    train(case, output, fault=waiting, asynchronous_checkpoints=True, **options)
    assert curve(output) == curve(expected)
    for step in (4, 8, 12, 16, STEPS):
        assert weights(output, step) == weights(expected, step)
    saves = {line["step"]: line for line in lines(output) if "checkpoint/seconds" in line}
    assert sorted(saves) == [4, 8, 12, 16, STEPS]
    assert latest(output) == STEPS
    positions = {line["step"]: number for number, line in enumerate(lines(output)) if "train/loss" in line}
    finished = next(
        n for n, line in enumerate(lines(output)) if "checkpoint/seconds" in line and line["step"] == 8
    )
    assert positions[9] < finished, "training went on while step 8 was being written"


def test_killed_while_a_checkpoint_is_written_in_the_background(case: Path, uninterrupted: Path) -> None:
    output = case / "killed-writing"
    slow = SLOW_WRITES.replace("SECONDS", "60")
    run = begin(case, output, fault=slow, asynchronous_checkpoints=True, **EVERY_FOUR)
    run.wait_for_step(10)
    run.kill()
    assert latest(output) == 4
    assert (output / "checkpoints" / "iter_0000008").is_dir() and not is_complete(output, 8)
    train(case, output, asynchronous_checkpoints=True, **EVERY_FOUR)
    assert "continuing from the checkpoint of step 4" in console(output)
    assert weights(output, STEPS) == weights(uninterrupted, STEPS)


@pytest.mark.parametrize("background", [False, True])
def test_a_write_that_fails_is_an_error(case: Path, background: bool) -> None:
    """In the background it is raised at the end of a step soon after."""
    output = case / f"failing-{background}"
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint[\s\S]*No space left on device"):
        train(
            case, output, fault=FAILING_WRITE, asynchronous_checkpoints=background,
            parallel={"tensor": 2}, **EVERY_FOUR,
        )  # fmt: skip
    assert latest(output) == 4
    assert 8 <= max(line["step"] for line in lines(output)) <= 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that a second checkpoint does not fit on."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk(case: Path, uninterrupted: Path, small_disk: Path, background: bool) -> None:
    """An error, the last checkpoint as it was; once there is space the run goes on from it."""
    output = small_disk / "out"
    options = {**EVERY_FOUR, "asynchronous_checkpoints": background}
    with pytest.raises((CheckpointError, TrainingError)) as caught:
        train(case, output, **options)
    said = re.search(r"No space left on device|\n[\d,]{1,7} bytes are free there", str(caught.value))
    assert said, caught.value
    kept = latest(output)
    assert 4 <= kept < STEPS
    assert weights(output, kept) == weights(uninterrupted, kept)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    train(case, output, **options)
    assert f"continuing from the checkpoint of step {kept}" in console(output)
    assert weights(output, STEPS) == weights(uninterrupted, STEPS)


def test_a_dead_rank_ends_the_run(case: Path) -> None:
    """Killed in the middle, as by the out-of-memory killer: an error within seconds, not a hang."""
    output = case / "dead"
    options = {"parallel": {"tensor": 2}, **EVERY_FOUR}
    run = begin(case, output, fault=SLOW_WRITES.replace("SECONDS", "60"), **options)
    run.wait_for_step(8)  # both ranks are in the checkpoint
    ranks = psutil.Process(run.pid).children()
    assert len(ranks) == 2
    ranks[1].kill()
    died = time.monotonic()
    status = server().wait(run.pid)
    assert time.monotonic() - died < patience(10)
    job = TrainJob.model_validate_json((output / ".work" / "job.json").read_bytes())
    with pytest.raises(TrainingError):
        raise_for_status(job, 2, status)
    assert latest(output) == 4


def test_a_hang_ends_with_its_reason(case: Path) -> None:
    """A step that sleeps longer than the watchdog allows."""
    fault = (
        "import time\nfrom tsugiki.pretrain.training.samples.reader import BatchReader\noriginal = BatchReader.step\n"
        "def step(self, number):\n    time.sleep(60 if number == 3 else 0)\n    return original(self, number)\n"
        "BatchReader.step = step\n"
        "import tsugiki.pretrain.runtime.process_groups as distributed\ninitialise = distributed.initialise\n"
        "def told(*arguments):\n    print('ranks wait for', arguments[-1])\n    initialise(*arguments)\n"
        "distributed.initialise = told\n"
    )
    with pytest.raises(TrainingError, match="training hangs") as caught:
        train(case, case / "hang", fault=fault, watchdog_seconds=6.0, startup_watchdog_seconds=120.0)
    assert "after step 3" in str(caught.value) and "watchdog_seconds" in str(caught.value)
    assert "ranks wait for 0:07:00\n" in console(case / "hang"), "longer than the watchdog, which says more"
    assert "in _loop" in (case / "hang" / ".work" / "logs" / "rank_0.log").read_text(), "the stacks"


@pytest.mark.parametrize("variable", ["SLURM_JOB_END_TIME", "TSUGIKI_DEADLINE"])
def test_a_job_that_ends_before_the_next_save_saves_early(case: Path, variable: str) -> None:
    """40 seconds left, the first save a thousand steps away: a checkpoint while there is time."""
    output = case / variable
    end = str(int(time.time()) + 40)
    train(case, output, {variable: end}, save_interval_steps=1000, keep_last_checkpoints=9)
    steps = sorted(line["step"] for line in lines(output) if "checkpoint/seconds" in line)
    assert steps == [1, STEPS], "once, at the first step that sees the end"
    assert is_complete(output, 1)


def test_a_job_with_time_left_does_not_save_early(case: Path) -> None:
    output = case / "far"
    environment = {"TSUGIKI_DEADLINE": "noon", "SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
    train(case, output, environment, save_interval_steps=1000)
    assert "TSUGIKI_DEADLINE='noon' is not a number of seconds" in console(output)
    assert [line["step"] for line in lines(output) if "checkpoint/seconds" in line] == [STEPS]


def test_running_is_a_process(case: Path) -> None:
    """What the kills above rely on: the signal ends launcher and ranks."""
    run: Running = begin(case, case / "process", parallel={"tensor": 2})
    run.wait_for_step(1)
    ranks = psutil.Process(run.pid).children()
    run.kill()
    psutil.wait_procs(ranks, timeout=60)
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
