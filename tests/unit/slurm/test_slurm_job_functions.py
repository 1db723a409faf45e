"""Functions of slurm/job.sh on files written by hand."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from pathlib import Path

import pytest

from tsugiki.slurm.scripts import SCRIPTS


def call(function: str, folder: Path, *arguments: str, status: int = 0, **variables: str) -> str:
    """Output of a function of job.sh for the stage `train` of a run in a folder; it ends with a status."""
    (folder / "slurm").mkdir(exist_ok=True)
    settings = {
        "TSUGIKI_RUN_DIR": str(folder),
        "TSUGIKI_CHAIN": "c1",
        "token": "9.1",
        "stage": "train",
        "job": "9",
        "restart": "1",
        "stopping": "",
        "tasks": "4",
        "SLURM_JOB_ID": "9",
        "SLURM_JOB_PARTITION": "gpu",
        "SLURM_JOB_NUM_NODES": "2",
        **variables,
    }
    script = f'source "{SCRIPTS}/job.sh"; state=$TSUGIKI_RUN_DIR/slurm logs=$state; {function} "$@"'
    answer = subprocess.run(
        ["bash", "-uc", script, "bash", *arguments],
        capture_output=True, text=True,
        env={"PATH": f"{folder}/bin:/usr/bin:/bin", **settings}, check=False,
    )  # fmt: skip
    assert answer.returncode == status, answer.stdout + answer.stderr
    return answer.stdout.strip()


def table(folder: Path, name: str, *rows: str) -> None:
    (folder / "slurm").mkdir(exist_ok=True)
    (folder / "slurm" / name).write_text("".join(row.replace(" ", "\t") + "\n" for row in rows))


def commands(folder: Path, **scripts: str) -> Path:
    """Stand-ins for Slurm's commands; the file where they note down how they are called."""
    (folder / "bin").mkdir()
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(f'#!/bin/bash\necho "{name} $*" >>{folder}/calls\n{text}\n')
        (folder / "bin" / name).chmod(0o755)
    return folder / "calls"


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
        "c1 9.4 500.0 0 node3 76", "c1 9.5 600.0 0 node3 76",  # left because another had failed
        "c1 9.3 400.0 check node4 1",
        "c0 8.0 90.0 0 node2 137", "c0 8.1 91.0 check node5 1",  # an earlier submission does not count
    )  # fmt: skip
    assert call("bad_nodes", tmp_path, TSUGIKI_EXCLUDE_AFTER="2") == "node2,node4"
    assert call("bad_nodes", tmp_path, TSUGIKI_EXCLUDE_AFTER="3") == "node4"


# In the formats of `scontrol show job -o` and `scontrol show hostnames LIST`; of `sinfo -h -N -o '%N %t'`, where
# a node of two partitions comes twice; of `squeue -h -o '%i %E'`.
SCONTROL = """case $1 in
  update) exit 0 ;;
  show) case $2 in
    job) echo "JobId=9 JobState=RUNNING ReqNodeList=(null) ExcNodeList=$EXCLUDED Features=(null)" ;;
    hostnames) echo "${3//,/$'\n'}" ;;
  esac ;;
esac"""
SINFO = "printf '%s\\n' 'n1 alloc' 'n1 alloc' 'n2 mix' 'n3 idle' 'n4 down*' 'n5 drain' 'n6 idle*' 'n7 drng'"
SQUEUE = (
    "printf '%s\\n' '11 afterok:9(unfulfilled)' '12 afterany:9(unfulfilled)' '13 afterany:99(unfulfilled)'"
)


@pytest.mark.parametrize(
    ("excluded", "nodes", "update"),
    [
        ("(null)", "2", "n1"),
        ("n8,n9", "2", "n8,n9,n1"),  # those of the cluster file stay left out
        ("n2", "2", None),  # only n3 would remain in service
        ("(null)", "3", None),
    ],
)
def test_bad_nodes_are_left_out_where_enough_others_remain(
    excluded: str, nodes: str, update: str | None, tmp_path: Path
) -> None:
    calls = commands(tmp_path, scontrol=SCONTROL, sinfo=SINFO)
    table(tmp_path, "train.failures", "c1 9.1 100.5 3 n1 137")
    said = call(
        "leave_out", tmp_path, "9", TSUGIKI_EXCLUDE_AFTER="1", EXCLUDED=excluded, SLURM_JOB_NUM_NODES=nodes
    )
    updates = [line for line in calls.read_text().splitlines() if line.startswith("scontrol update")]
    assert updates == ([f"scontrol update JobId=9 ExcNodeList={update}"] if update else [])
    assert ("n1 should be left out, but then partition gpu has" in said) == (update is None)
    assert (tmp_path / "slurm" / "history.tsv").is_file() == (update is not None)


@pytest.mark.parametrize(
    ("failures", "spare", "chosen", "status"),
    [
        ([], "1", "n1,n2", 0),
        (["c1 9.1 100.5 3 n1 137"], "1", "n2,n3", 0),  # the spare one takes its place
        (["c1 9.1 100.5 check n2 1"], "1", "n1,n3", 0),
        (["c1 9.1 100.5 3 n1 76"], "1", "n1,n2", 0),  # another rank had failed
        (["c1 9.1 100.5 3 n1 137", "c1 9.2 100.5 3 n2 137"], "1", "n3", 1),
        (["c1 9.1 100.5 3 n1 137"], "0", "n1,n2,n3", 0),  # without spare ones all are needed
    ],
)
def test_a_spare_node_takes_the_place_of_a_bad_or_lost_one(
    failures: list[str], spare: str, chosen: str, status: int, tmp_path: Path
) -> None:
    commands(tmp_path, scontrol=SCONTROL, sinfo="echo n1 alloc; echo n2 mix; echo n3 alloc; echo n4 'down*'")
    table(tmp_path, "train.failures", *failures)
    said = call(
        'f() { choose_nodes; s=$?; echo "$nodes $chosen"; return $s; }; f', tmp_path, status=status,
        TSUGIKI_EXCLUDE_AFTER="1", TSUGIKI_SPARE_NODES=spare, SLURM_JOB_NODELIST="n1,n4,n2,n3" if spare == "1" else "n1,n2,n3",
        SLURM_JOB_NUM_NODES="3",
    )  # fmt: skip
    assert said == f"{3 - int(spare)} {chosen}"


@pytest.mark.parametrize("last", [False, True])
def test_where_requeue_is_forbidden_the_next_link_leaves_bad_nodes_out(last: bool, tmp_path: Path) -> None:
    squeue = "echo '13 afterany:99(unfulfilled)'" if last else SQUEUE
    calls = commands(tmp_path, scontrol=SCONTROL, sinfo=SINFO, squeue=squeue)
    table(tmp_path, "train.failures", "c1 9.1 100.5 3 n1 137")
    table(tmp_path, "train.owner", "9.1")
    said = call(
        "again", tmp_path, "a rank died", status=1,
        TSUGIKI_EXCLUDE_AFTER="1", TSUGIKI_REQUEUE="0", EXCLUDED="(null)",
    )  # fmt: skip
    assert ("scontrol update JobId=12 ExcNodeList=n1" in calls.read_text()) == (not last)
    events = [line.split("\t")[4:] for line in (tmp_path / "slurm/history.tsv").read_text().splitlines()]
    if last:  # and of every stage that has one job
        assert "a rank died; no further job of this stage waits: submit again to go on" in said
        assert events == [["failed", "", "a rank died; submit again to go on"]]
    else:
        assert "a rank died; job 12 goes on from the last checkpoint" in said
        assert events == [["excluded", "", "n1"], ["next-link", "", "a rank died"]]


@pytest.mark.parametrize(
    ("signals", "phase", "cancel", "events"),
    [
        (["TERM"], "PENDING", "", ["ended by Slurm (PENDING)"]),
        (["TERM", "TERM"], "PREEMPTED", "", ["ended by Slurm (PREEMPTED)"]),
        (["TERM"], "RUNNING", "", []),  # by hand, or before a preemption: `again` asks once more
        (["USR1", "TERM"], "TIMEOUT", "", []),  # the requeue is ours
        (["TERM"], "CANCELLED", "9", []),  # by `tsugiki cancel`, which has an event of its own
    ],
)
def test_the_end_is_recorded_before_the_ranks_save(
    signals: list[str], phase: str, cancel: str, events: list[str], tmp_path: Path
) -> None:
    """KILL follows TERM after KillWait seconds: on a busy node the script gets no further."""
    commands(tmp_path, scontrol=f"echo JobId=9 JobState={phase} Requeue=1")
    table(tmp_path, "train.owner", "9.1")
    table(tmp_path, "cancel", cancel)
    call('f() { step=""; for name; do on_stop "$name"; done; }; f', tmp_path, *signals)
    history = tmp_path / "slurm/history.tsv"
    found = [line.split("\t") for line in history.read_text().splitlines()] if history.exists() else []
    assert [line[-1] for line in found] == events


@pytest.mark.parametrize("stopping", ["", "USR1"])
def test_failures_of_the_ranks_are_collected(stopping: str, tmp_path: Path) -> None:
    table(tmp_path, "train.failures", "c1 9.0 50.0 7 node9 137")
    table(tmp_path, "train-9.1-rank00002.failed", "c1 9.1 60.0 2 node1 1")
    table(tmp_path, "train-9.1-rank00003.failed", "c1 9.1 61.0 3 node2 143")
    call("collect_failures", tmp_path, stopping=stopping)
    found = (tmp_path / "slurm/train.failures").read_text().replace("\t", " ").splitlines()
    # ranks that end while the job is being stopped are nobody's fault
    ranks = [] if stopping else ["c1 9.1 60.0 2 node1 1", "c1 9.1 61.0 3 node2 143"]
    assert found == ["c1 9.0 50.0 7 node9 137", *ranks]
    assert not list((tmp_path / "slurm").glob("*.failed"))


def test_first_failing_rank_is_reported_with_its_errors(tmp_path: Path) -> None:
    table(
        tmp_path,
        "train.failures",
        "c1 9.0 50.0 7 node9 137",
        "c1 9.1 200.2 0 node1 1",
        "c1 9.1 200.0 3 node1 76",
        "c1 9.1 200.1 12 node2 139",
    )
    (tmp_path / "slurm" / "train-9.1-rank00012.err").write_text("Segmentation fault\n")
    lines = call("report_failure", tmp_path).splitlines()
    assert lines[0].startswith(
        "FIRST FAILURE: rank 12 on node2 failed first, status 139, 1970-01-01T00:03:20"
    )
    assert "  | Segmentation fault" in lines
    assert lines[-3:] == ["3\tnode1\t76", "12\tnode2\t139", "0\tnode1\t1"]


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


def test_the_check_gets_the_command_and_names_nodes(tmp_path: Path) -> None:
    """Of a node that says nothing itself another one says so."""
    said = 'echo "a: BAD NODE: compute: 3 FLOP/s"; echo "b: compute 9 FLOP/s"; echo "b: BAD NODE at c: no result in 120 s"'
    answer = 'echo "$TSUGIKI_CHECKED_NODES|$TSUGIKI_CLI" >>"$TSUGIKI_RUN_DIR/told"; ' + said
    commands(tmp_path, srun=answer, scontrol="printf 'a\\nb\\nc\\n'")
    setting = "CONTAINER=(in 'my image') TSUGIKI_COMMAND=(python -m tsugiki); check_nodes"
    call(setting, tmp_path, status=1, TSUGIKI_NODE_CHECK="x", SLURM_JOB_NODELIST="[a-c]")
    assert (tmp_path / "told").read_text() == "a b c|in my\\ image python -m tsugiki \n"
    lines = [line.split("\t") for line in (tmp_path / "slurm" / "train.failures").read_text().splitlines()]
    assert [(line[3], line[4]) for line in lines] == [("check", "a"), ("check", "c")]
    assert call("bad_nodes", tmp_path) == "a,c"
