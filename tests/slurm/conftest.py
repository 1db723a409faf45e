"""The test Slurm: started once when it can be, shared by concurrent test processes, stopped by the last."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NODES = 32  # every slurmd takes a few megabytes; job scripts for 32 nodes of 8 GPUs are tested as well
SIZE = {"nodes": NODES, "cpus": 96, "memory": 1_000_000}
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))  # toy.py, which the jobs run as a script


def _obstacle() -> str | None:
    """Why the test Slurm cannot be started here, or None."""
    if os.geteuid() != 0:
        return "needs root to start Slurm daemons"
    if not Path("/etc/debian_version").is_file() or shutil.which("apt-get") is None:
        return "needs Debian's packages of Slurm"
    conf = Path("/etc/slurm/slurm.conf")
    if conf.is_file() and not conf.read_text().startswith("# tsugiki test cluster "):
        return f"{conf} belongs to another Slurm, which is left alone"
    return None


def up(**settings: int) -> str | None:
    """Start or mend the cluster; the reason when it cannot be."""
    variables = {f"TEST_SLURM_{key.upper()}": str(value) for key, value in settings.items()}
    environment = {**os.environ, **variables}
    answer = subprocess.run(
        [HERE / "cluster-up"], capture_output=True, text=True, env=environment, timeout=900, check=False
    )
    if answer.returncode == 0:
        return None
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    if "apt-get failed" in answer.stderr or "must be root" in answer.stderr:
        return "; ".join(lines[-3:])
    raise AssertionError(f"cluster-up failed:\n{answer.stderr}")


def down(*arguments: str, instance: int = 0) -> None:
    """Stop the cluster, or crash one node or daemon of it."""
    environment = {**os.environ, "TEST_SLURM_INSTANCE": str(instance)}
    subprocess.run([HERE / "cluster-down", *arguments], timeout=600, env=environment, check=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """32 nodes with 96 cores and 8 GPUs each, pretended; without accounting."""
    if (reason := _obstacle()) is not None:
        pytest.skip(reason)
    with Path("/tmp/tsugiki-slurm-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with _mending():
            reason = up(**SIZE)
        if reason is not None:
            pytest.skip(f"Slurm could not be installed: {reason}")
        yield
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # another test process still uses it
        down()


@contextmanager
def _mending() -> Iterator[None]:
    """Nobody else mends the cluster meanwhile: another test process that starts would bring back a dead node."""
    with Path("/tmp/tsugiki-slurm-mending.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def breakable(cluster: None) -> Iterator[None]:
    """The cluster, for a test that breaks a node: it stays broken until the end of the test."""
    with _mending():
        yield
        assert up(**SIZE) is None


@pytest.fixture
def whole(cluster: None) -> Iterator[None]:
    """The cluster with every node, for a test that needs them all: no other process breaks one meanwhile."""
    with _mending():
        assert up(**SIZE) is None
        yield


@pytest.fixture(scope="module")
def accounting() -> Iterator[None]:
    """Another Slurm of two nodes with slurmdbd, beside the one without, for the tests of one module."""
    if (reason := _obstacle()) is not None:
        pytest.skip(reason)
    with Path("/tmp/tsugiki-slurm-accounting.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (reason := up(instance=1, accounting=1, nodes=2, cpus=8)) is not None:
            pytest.skip(f"Slurm's accounting could not be installed: {reason}")
        patch.setenv("SLURM_CONF", "/tmp/tsugiki-slurm-1/etc/slurm.conf")
        yield
        down(instance=1)


STEPS = 24
SETTINGS = [
    f"tokens.mixture.total_tokens={STEPS * 1024}",
    "base.scratch.train_tokens=1024",
    "evaluate.maximum_bytes_per_language=300",
    "train.save_interval_steps=1000",
    "train.validation_interval_steps=1000",
    "train.log_interval_steps=1",
]


@pytest.fixture(scope="session")
def smoke(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smoke experiment submitted, its corpus and tokens as arrays, its training held back."""
    run_dir = tmp_path_factory.mktemp("smoke") / "run"
    overrides = [
        *SETTINGS, f"run_dir={run_dir}", "cluster.arrays={corpus: {tasks: 3}, tokens: {tasks: 2}}",
        "cluster.stages={train: {sbatch_flags: [--hold]}}",
        "cluster.environment.variables.TSUGIKI_STALE_SECONDS=1",
    ]  # fmt: skip
    from tsugiki.slurm.submit import submit

    submit(ROOT / "configs" / "smoke.yaml", "local", overrides, announce=lambda line: None)
    yield run_dir

    from tsugiki.slurm import jobs

    jobs.cancel(run_dir, wait_seconds=0, announce=lambda line: None)


def wait_until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.4)
    raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
