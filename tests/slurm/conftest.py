"""The test Slurm: started once when it can be, shared by concurrent test processes, stopped by the last."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NODES = 5
HERE = Path(__file__).resolve().parent
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
        [HERE / "cluster-up"], capture_output=True, text=True, env=environment, timeout=400, check=False
    )
    if answer.returncode == 0:
        return None
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    if "apt-get failed" in answer.stderr or "must be root" in answer.stderr:
        return "; ".join(lines[-3:])
    raise AssertionError(f"cluster-up failed:\n{answer.stderr}")


def down(*arguments: str) -> None:
    """Stop the cluster, or crash one node or daemon of it."""
    subprocess.run([HERE / "cluster-down", *arguments], timeout=120, check=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Five nodes with 8 cores each."""
    if (reason := _obstacle()) is not None:
        pytest.skip(reason)
    with Path("/tmp/tsugiki-slurm-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if (reason := up(nodes=NODES)) is not None:
            pytest.skip(f"Slurm could not be installed: {reason}")
        yield
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # another test process still uses it
        down()


@pytest.fixture
def until() -> Callable[..., Any]:
    """Wait for a condition; the value it gave, or a failure that says what was waited for."""
    return wait_until


def wait_until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.4)
    raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
