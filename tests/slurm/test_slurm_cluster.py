"""The scripts of the test Slurm themselves."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import HERE, wait_until

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for /etc/hosts and namespaces"),
]


def test_clusters_take_turns_with_the_hosts_file(tmp_path: Path) -> None:
    """Two that start or stop together would each write what it read, and lose the other's nodes."""
    environment = {**os.environ, "TEST_SLURM_INSTANCE": "2", "TEST_SLURM_DIR": str(tmp_path)}
    with Path("/tmp/tsugiki-slurm-hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen([HERE / "cluster-down"], env=environment) as stopping:
            with pytest.raises(subprocess.TimeoutExpired):
                stopping.wait(1.5)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert stopping.wait(600) == 0


def test_what_runs_in_a_namespace_of_another_cluster_is_not_killed(tmp_path: Path) -> None:
    """The kernel gives the namespace number of a node that ended to the next that starts, of any cluster."""
    pids = tmp_path / "pid"
    pids.mkdir()
    started = []
    for node, name in (("node201", "node201"), ("node202", "node101")):
        shell = f"hostname {name} && readlink /proc/self/ns/uts >{pids}/{node}.uts && exec sleep 1200"
        started.append(subprocess.Popen(["unshare", "--uts", "bash", "-c", shell]))
    wait_until(lambda: all((pids / f"node20{i}.uts").is_file() for i in (1, 2)), 600, "namespaces")
    ours, theirs = started
    try:
        environment = {**os.environ, "TEST_SLURM_INSTANCE": "2", "TEST_SLURM_DIR": str(tmp_path)}
        subprocess.run([HERE / "cluster-down"], env=environment, check=True, timeout=600)
        assert ours.wait(120) == -signal.SIGKILL
        assert theirs.poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()
