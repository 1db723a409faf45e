"""The scripts of the test Slurm themselves."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from conftest import HERE

pytestmark = pytest.mark.slurm


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to write /etc/hosts")
def test_clusters_take_turns_with_the_hosts_file(tmp_path: Path) -> None:
    """Two that start or stop together would each write what it read, and lose the other's nodes."""
    environment = {**os.environ, "TEST_SLURM_INSTANCE": "2", "TEST_SLURM_DIR": str(tmp_path)}
    with Path("/tmp/tsugiki-slurm-hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen([HERE / "cluster-down"], env=environment) as stopping:
            with pytest.raises(subprocess.TimeoutExpired):
                stopping.wait(1.5)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert stopping.wait(60) == 0
