"""Functions of slurm/job.sh on files written by hand."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from pathlib import Path

import pytest

from slurm.scripts import HOME


def call(function: str, folder: Path, *arguments: str, **variables: str) -> str:
    """Output of a function of job.sh for the stage `train` of a run in a folder."""
    (folder / "slurm").mkdir(exist_ok=True)
    settings = {
        "TSUGIKI_RUN_DIR": str(folder),
        "TSUGIKI_CHAIN": "c1",
        "token": "9.1",
        "stage": "train",
        **variables,
    }
    script = f'source "{HOME}/slurm/job.sh"; state=$TSUGIKI_RUN_DIR/slurm logs=$state; {function} "$@"'
    answer = subprocess.run(
        ["bash", "-uc", script, "bash", *arguments],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **settings}, check=True,
    )  # fmt: skip
    return answer.stdout.strip()


def table(folder: Path, name: str, *rows: str) -> None:
    (folder / "slurm").mkdir(exist_ok=True)
    (folder / "slurm" / name).write_text("".join(row.replace(" ", "\t") + "\n" for row in rows))


@pytest.mark.parametrize(
    ("starts", "now", "idle"),
    [
        ([], "0", 0),
        (["c1 5 0 0"], "0", 1),
        (["c1 5 0 0", "c1 5 1 0", "c1 5 2 0"], "0", 3),
        (["c1 5 0 0", "c1 5 1 0", "c1 5 2 40"], "40", 1),
        (["c1 5 0 0", "c1 5 1 40"], "50", 0),
        (["c0 4 0 0", "c0 4 1 0", "c1 5 0 0"], "0", 1),  # an earlier submission does not count
    ],
)
def test_restarts_without_progress_are_counted_from_the_newest(
    starts: list[str], now: str, idle: int, tmp_path: Path
) -> None:
    table(tmp_path, "train.starts", *starts)
    assert call("idle_restarts", tmp_path, now) == str(idle)


def test_only_the_cause_of_an_attempt_counts_against_a_node(tmp_path: Path) -> None:
    table(
        tmp_path, "train.failures",
        "c1 9.0 100.5 3 node2 137", "c1 9.0 100.9 0 node1 1",  # node2 first, node1 followed
        "c1 9.1 200.0 1 node1 143", "c1 9.1 200.2 2 node2 137",  # ended by Slurm, then the cause
        "c1 9.2 300.0 0 node3 75",  # stopped on request
        "c1 9.3 400.0 check node4 1",
    )  # fmt: skip
    assert call("bad_nodes", tmp_path, TSUGIKI_EXCLUDE_AFTER="2") == "node2,node4"
    assert call("bad_nodes", tmp_path, TSUGIKI_EXCLUDE_AFTER="3") == "node4"


def test_first_failing_rank_is_reported_with_its_errors(tmp_path: Path) -> None:
    table(
        tmp_path,
        "train.failures",
        "c1 9.0 50.0 7 node9 137",
        "c1 9.1 200.2 0 node1 1",
        "c1 9.1 200.1 12 node2 139",
    )
    (tmp_path / "slurm" / "train-9.1-rank00012.err").write_text("Segmentation fault\n")
    lines = call("report_failure", tmp_path).splitlines()
    assert lines[0].startswith(
        "FIRST FAILURE: rank 12 on node2 failed first, status 139, 1970-01-01T00:03:20"
    )
    assert "  | Segmentation fault" in lines
    assert lines[-2:] == ["12\tnode2\t139", "0\tnode1\t1"]


def test_progress_is_the_checkpoint_or_the_finished_tasks(tmp_path: Path) -> None:
    assert call("progress", tmp_path) == "0"
    done = tmp_path / "train.partial" / ".work" / "logs" / "filter" / "completions"
    done.mkdir(parents=True)
    for rank in range(3):
        (done / f"{rank:05d}").touch()
    assert call("progress", tmp_path) == "3"
    checkpoints = tmp_path / "train.partial" / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "latest.json").write_text('{\n "iteration": 94\n}\n')
    assert call("progress", tmp_path) == "94"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2"])
def test_port_of_the_rendezvous_is_one_where_nothing_listens(host: str, tmp_path: Path) -> None:
    """Job 10007 would take the port of job 7, which still runs."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):  # a base with three free ports in a row
            base = 20000 + random.randrange(9000)
            with contextlib.suppress(OSError):
                for port in (base + 7, base + 8):
                    listener = stack.enter_context(socket.create_server((host, port)))
                break
        assert call("free_port", tmp_path, str(base), "10007", MASTER_ADDR=host) == str(base + 9)
        listener.close()
        assert call("free_port", tmp_path, str(base), "10007", MASTER_ADDR=host) == str(base + 8)
