"""Chains, failures and restarts on a real Slurm, with the stages of toy.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from conftest import HERE, down, wait_until
from toy_run import Run, ranks, site

from tsugiki.experiment.errors import ConfigError
from tsugiki.slurm import client, jobs
from tsugiki.slurm.config import ClusterConfig

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


# Stand-ins that insist on the arguments, note them down and run the command on the node. Pyxis' options are the
# srun of a site that has it; everything else goes to the real srun.
STAND_INS = {
    "apptainer": """#!/bin/bash
[ "$1 $2" = "exec --pwd" ] && [ "$4 $5 $6 $7" = "--bind $NOTES:/notes --cleanenv /images/$SLURM_JOB_NUM_NODES.sif" ] || exit 99
echo "$SLURM_JOB_NAME $3" >>"$NOTES/calls"
shift 7; exec "$@"
""",
    "srun": """#!/bin/bash
rest=() container=()
for argument in "$@"; do case $argument in --container-*) container+=("$argument") ;; *) rest+=("$argument") ;; esac; done
[ ${#container[@]} = 0 ] || echo "$SLURM_JOB_NAME ${container[*]}" >>"$NOTES/calls"
exec /usr/bin/srun "${rest[@]}"
""",
}


def container_site(folder: Path, kind: str) -> ClusterConfig:
    """A site where everything runs in containers that are pretended."""
    tools = folder / f"{kind}-tools"
    tools.mkdir()
    for name, text in STAND_INS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    container = {
        "kind": kind, "image": "/images/$SLURM_JOB_NUM_NODES.sif", "mounts": ["$NOTES:/notes"],
        "flags": ["--cleanenv" if kind == "apptainer" else "--container-writable"],
    }  # fmt: skip
    plain = site().environment
    variables = {**plain.variables, "NOTES": str(tools), "PATH": f"{tools}:$PATH"}
    return site(environment={"command": plain.command, "variables": variables, "container": container})


@pytest.fixture(scope="module")
def runs(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Runs that need nothing but time, all submitted at once; each test waits for its own."""
    folder = tmp_path_factory.mktemp("runs")
    long = {"steps": 60, "step_seconds": 2.0, "save_every": 1000}
    shape = {"nodes": 2, "tasks_per_node": 2}
    forbidden = {
        "requeue": False, "links": 3, "stop_seconds_before_limit": 10, "exclude_node_after_failures": 1,
    }  # fmt: skip
    table: dict[str, tuple[ClusterConfig, dict[str, Any]]] = {
        "limit": (
            # not on the nodes that another test crashes
            site(train={**shape, "time_limit_hours": 1 / 60, "exclude_nodes": ["node[3-5]"]}),
            {"train": long},
        ),
        "links": (
            site(restart=forbidden),
            {"train": {"steps": 40, "fault": {"kind": "kill", "rank": 1, "step": 22}}},
        ),
        "killed": (site(), {"train": {"steps": 40, "fault": {"kind": "kill", "rank": 2, "step": 23}}}),
        "stuck": (
            site(restart={"maximum_restarts_without_progress": 1, "exclude_node_after_failures": 9}),
            {
                "train": {
                    "steps": 400,
                    "save_every": 1000,
                    "fault": {"kind": "error", "rank": 3, "step": 3, "times": 99},
                }
            },
        ),
        "bad-node": (
            site(
                restart={"exclude_node_after_failures": 1}, train={**shape, "exclude_nodes": ["node[31-32]"]}
            ),
            {"train": {"steps": 40, "fault": {"kind": "kill", "rank": 3, "step": 23}}},
        ),
        "data-error": (site(), {"corpus": {"fail": True}}),
        "plain": (site(), {}),
        # a site where jobs do not get the environment of who submits, and a folder that needs quoting
        "50% no export": (site(train={**shape, "sbatch_flags": ["--export=NONE"]}), {}),
    }
    for kind in ("apptainer", "pyxis"):
        table[kind] = (container_site(folder, kind), {})
    started: dict[str, Run] = {}
    for name, (cluster_config, config) in table.items():
        started[name] = Run(folder / name, name.split()[-1], **config)
        started[name].submit(cluster_config)
    yield started
    for run in started.values():
        jobs.cancel(run.dir, wait_seconds=0, announce=lambda line: None)


def test_chain_runs_and_a_second_submission_changes_nothing(runs: dict[str, Run]) -> None:
    run = runs["plain"]
    first = [job.job_id for job in run.submission.jobs] if run.submission else []
    assert len(first) == 3
    again = run.submit()
    assert again.jobs == []
    assert run.finish()["x"] == toy.expected_state(20)
    assert run.submit().jobs == []
    assert [plan.action for plan in run.submit().plans] == ["skip", "skip", "skip"]
    assert len(jobs.JobRecord.load(run.dir).jobs) == 3
    worlds = (run.dir / "train" / "ranks-3.log").read_text().split()
    assert worlds[2] == "4"


def test_killed_rank_is_named_and_training_goes_on(runs: dict[str, Run]) -> None:
    run = runs["killed"]
    assert run.finish()["x"] == toy.expected_state(40)
    assert run.events() == ["start", "requeue", "start", "complete"]
    first_line = next((run.dir / "slurm" / "logs").glob("*-failure.txt")).read_text().splitlines()[0]
    assert re.match(r"FIRST FAILURE: rank 2 on node\d failed first, status 137", first_line)
    # the restart continued from a checkpoint (every 5 steps) at or after the step of the fault
    first_step = int((run.dir / "train" / "ranks-0.log").read_text().splitlines()[1].split()[-1])
    assert first_step >= 21
    assert first_step % 5 == 1
    assert "1 restart" in run.status()


def test_gives_up_without_progress_and_says_so(runs: dict[str, Run]) -> None:
    run = runs["stuck"]
    assert run.finish() == {}
    assert run.events() == ["start", "requeue", "start", "requeue", "gave-up"]
    assert run.state("train") == "FAILED"
    assert run.state("export") == "CANCELLED"
    status = run.status()
    assert "gave up after 1 restarts without progress" in status
    assert re.search(r"export +CANCELLED +never started: train \(job \d+\) failed: gave up", status)
    errors = next((run.dir / "slurm" / "logs").glob("train-*-rank00003.err")).read_text()
    assert "bad batch" in errors
    # its script by hand says what keeps it from starting
    again = client.sbatch(run.dir / "slurm" / "train.sbatch", [str(run.dir / "slurm" / "config.yaml")])
    wait_until(lambda: not client.states([again])[again].live, 600, run.log)
    assert client.states([again])[again].state == "FAILED"
    text = run.log()
    assert f"to submit this script again, remove {run.dir}/slurm/train.stop" in text
    assert run.events()[-1] == "refused"


def test_failed_stage_cancels_what_follows(runs: dict[str, Run]) -> None:
    run = runs["data-error"]
    assert run.finish() == {}
    assert run.starts("corpus") == 1  # an error with a message is not tried again
    assert run.state("train") == run.state("export") == "CANCELLED"
    assert re.search(r"export +CANCELLED +never started: corpus", run.status())


def test_bad_node_is_left_out_after_a_restart(runs: dict[str, Run]) -> None:
    run = runs["bad-node"]
    assert run.finish()["x"] == toy.expected_state(40)
    assert "excluded" in run.events()
    bad = next(event.detail for event in jobs.history(run.dir) if event.event == "excluded")
    hosts = (run.dir / "train" / "ranks-3.log").read_text().splitlines()
    assert hosts[0].startswith(bad)
    everywhere = [
        (run.dir / "train" / f"ranks-{rank}.log").read_text().splitlines()[1].split()[0] for rank in range(4)
    ]
    assert bad not in everywhere
    # beside those of the cluster file
    assert _left_out(run.job("train")) == {bad, "node31", "node32"}


def _left_out(job: int) -> set[str]:
    shown = subprocess.check_output(["scontrol", "show", "job", str(job), "-o"], text=True)
    listing = re.search(r" ExcNodeList=(\S*)", shown)
    assert listing is not None
    hosts = subprocess.check_output(["scontrol", "show", "hostnames", listing[1]], text=True)
    return set(hosts.split())


def test_links_continue_each_other_where_requeue_is_forbidden(runs: dict[str, Run]) -> None:
    run = runs["links"]
    assert run.finish()["x"] == toy.expected_state(40)
    assert run.events() == ["start", "excluded", "next-link", "start", "complete", "start", "complete"]
    bad = next(event.detail for event in jobs.history(run.dir) if event.event == "excluded")
    links = [job.job_id for job in jobs.JobRecord.load(run.dir).jobs if job.stage == "train"]
    assert (run.dir / "train" / "ranks-1.log").read_text().split()[0] == bad
    assert _left_out(links[1]) == {bad}
    assert f"job {links[1]} goes on from the last checkpoint" in run.log()
    assert run.state("train") == "FAILED"  # the first link
    assert run.state("export") == "COMPLETED"
    script = subprocess.run(
        ["scontrol", "show", "job", str(run.job("train"))], capture_output=True, text=True, check=True
    )
    assert "Requeue=0" in script.stdout


def test_jobs_need_nothing_of_the_submitting_environment(runs: dict[str, Run]) -> None:
    run = runs["50% no export"]
    assert run.finish()["x"] == toy.expected_state(20)
    logs = {f"export-{stage}-{run.job(stage)}.log" for stage in ("corpus", "train", "export")}
    assert {path.name for path in (run.dir / "slurm" / "logs").glob("*.log")} == logs


def test_last_link_says_that_nothing_follows(tmp_path: Path) -> None:
    fault = {"kind": "kill", "rank": 1, "step": 3}
    run = Run(tmp_path, "last-link", train={"fault": fault})
    run.submit(site(restart={"requeue": False, "links": 1, "stop_seconds_before_limit": 10}))
    assert run.finish() == {}
    assert "no further job of this stage waits: submit again to go on" in run.log()
    assert run.events() == ["start", "failed"]
    assert re.search(r"export +CANCELLED +never started: train .*submit again to go on", run.status())
    run.submit(site(restart={"requeue": False, "links": 1, "stop_seconds_before_limit": 10}))
    assert run.finish()["x"] == toy.expected_state(20)


def test_every_process_runs_in_the_container(runs: dict[str, Run]) -> None:
    run = runs["apptainer"]
    assert run.finish()["x"] == toy.expected_state(20)
    notes = (run.file.parents[1] / "apptainer-tools" / "calls").read_text().splitlines()
    # four ranks of training, one process of each other stage, all in the folder that submitted
    assert sorted(notes) == sorted(
        f"apptainer-{stage} {Path.cwd()}" for stage in ["corpus", *["train"] * 4, "export"]
    )

    run = runs["pyxis"]
    assert run.finish()["x"] == toy.expected_state(20)
    notes = (run.file.parents[1] / "pyxis-tools" / "calls").read_text().splitlines()
    tools = run.file.parents[1] / "pyxis-tools"
    for stage, nodes in (("corpus", 1), ("train", 2), ("export", 1)):
        assert notes.count(
            f"pyxis-{stage} --container-image=/images/{nodes}.sif --container-workdir={Path.cwd()} "
            f"--container-mounts={tools}:/notes --container-writable"
        ) == 1  # fmt: skip
    assert len(notes) == 3


def test_wrong_partition_gives_slurms_message_and_ours(tmp_path: Path) -> None:
    run = Run(tmp_path, "wrong")
    with pytest.raises(ConfigError) as caught:
        run.submit(site(train={"nodes": 2, "tasks_per_node": 2, "partition": "gpus"}))
    text = str(caught.value)
    assert "stage 'train'" in text
    assert "invalid partition specified: gpus" in text.lower()
    assert "partitions here: main, cpu, gpu" in text
    # the corpus job that had been accepted is cancelled again, and nothing is on record
    assert jobs.JobRecord.load(run.dir).jobs == []
    assert (
        "PENDING"
        not in subprocess.run(
            ["squeue", "-h", "-n", "wrong-corpus", "-o", "%T"], capture_output=True, text=True, check=True
        ).stdout
    )


def test_cancel_saves_and_stops_without_requeue(tmp_path: Path) -> None:
    run = Run(tmp_path, "cancelled", train={"steps": 1000, "step_seconds": 0.1, "save_every": 10_000})
    run.submit()
    run.wait_for("start")
    wait_until(lambda: ranks(run, 1), 600, run.log)
    with pytest.raises(ConfigError, match="another configuration"):
        run.config["train"] = {"steps": 7}
        run.submit()
    jobs.cancel(run.dir, announce=run.lines.append)
    assert run.finish() == {}
    assert run.events() == ["start", "cancelled"]
    saved = json.loads((run.dir / "train.partial" / "checkpoints" / "latest.json").read_text())
    assert saved["iteration"] > 0
    assert jobs.cancel(run.dir, announce=run.lines.append) == []


def test_requeue_by_the_administrator_and_signal_to_the_step(tmp_path: Path) -> None:
    run = Run(tmp_path, "signals", train={"steps": 300, "step_seconds": 0.1, "save_every": 10_000})
    run.submit()
    run.wait_for("start")
    wait_until(lambda: ranks(run, 1), 600, run.log)
    job = str(run.job("train"))
    subprocess.run(["scancel", "--signal=USR1", job], check=True)  # reaches the ranks, not the batch script
    run.wait_for("start", count=2)
    wait_until(lambda: ranks(run, 2), 600, run.log)
    subprocess.run(["scontrol", "requeue", job], check=True)  # kills the script: nothing is saved
    assert run.finish()["x"] == toy.expected_state(300)
    assert run.events() == ["start", "requeue", "start", "ended", "start", "complete"]


def test_a_spare_node_takes_over_within_the_job(tmp_path: Path) -> None:
    run = Run(tmp_path, "spare", train={"steps": 40, "fault": {"kind": "kill", "rank": 3, "step": 23}})
    environment = site().environment
    variables = {**environment.variables, "TSUGIKI_LAST_WORDS_SECONDS": 1, "TSUGIKI_STALE_SECONDS": 1}
    run.submit(
        site(
            restart={"exclude_node_after_failures": 1},
            train={"nodes": 2, "tasks_per_node": 2, "spare_nodes": 1},
            environment={"command": environment.command, "variables": variables},
        )
    )
    assert run.finish()["x"] == toy.expected_state(40)
    assert run.events() == ["start", "again-here", "start", "complete"]
    hosts = [
        [line.split()[0] for line in (run.dir / "train" / f"ranks-{rank}.log").read_text().splitlines()]
        for rank in range(4)
    ]
    bad = hosts[3][0]
    assert bad not in {attempts[1] for attempts in hosts}
    assert len({attempts[1] for attempts in hosts}) == 2


def test_one_torchrun_per_node(tmp_path: Path) -> None:
    run = Run(tmp_path, "torchrun", train={"steps": 400, "step_seconds": 0.05, "save_every": 10_000})
    variables = {
        "TSUGIKI_TORCHRUN": 2, "TSUGIKI_STALE_SECONDS": 1, "OMP_NUM_THREADS": 1,
        "PATH": f"{Path(sys.executable).parent}:$PATH",
    }  # fmt: skip
    command = site().environment.command
    run.submit(
        site(
            train={"nodes": 2, "tasks_per_node": 1}, environment={"command": command, "variables": variables}
        )
    )
    wait_until(lambda: ranks(run, 1), 600, run.log)
    client.signal_batch(run.job("train"), "USR1")
    assert run.finish()["x"] == toy.expected_state(400)
    assert run.events() == ["start", "requeue", "start", "complete"]
    first_step = int((run.dir / "train" / "ranks-3.log").read_text().splitlines()[1].split()[-1])
    assert first_step > 1


def test_dead_node_daemon_does_not_leave_a_second_writer(breakable: None, tmp_path: Path) -> None:
    """The ranks of a node outlive its slurmd; the requeued job must not find them writing beside it."""
    # ranks that would not end by themselves
    hang = {"kind": "hang", "rank": 3, "step": 3}
    train = {"steps": 40, "step_seconds": 0.1, "save_every": 10, "fault": hang}
    run = Run(tmp_path, "crash", train=train)
    run.submit(
        site(
            train={"nodes": 2, "tasks_per_node": 2, "exclude_nodes": ["node[1-2]"]},
            environment={"command": f"{sys.executable} {HERE / 'toy.py'}"},
        )
    )
    run.wait_for("start")
    first = wait_until(lambda: ranks(run, 1), 600, run.log)
    node, stale = first[3]  # a node that is not the one of the batch script
    assert node != first[0][0]
    run.wait_for_fault()
    down(f"slurmd-{node}")
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    run.wait_for("start", count=2)
    second = wait_until(lambda: ranks(run, 2), 600, run.log)
    assert not Path(f"/proc/{stale}").exists()
    assert node not in [host for host, _ in second]
    assert run.finish()["x"] == toy.expected_state(40)


def test_dead_node_with_the_batch_script(breakable: None, tmp_path: Path) -> None:
    """Every process of the job's first node is gone at once, and with them the script that requeues."""
    hang = {"kind": "hang", "rank": 0, "step": 15}  # until the node dies, however long that takes
    train = {"steps": 40, "step_seconds": 0.1, "save_every": 10, "fault": hang}
    run = Run(tmp_path, "dead-node", train=train)
    run.submit(site(train={"nodes": 2, "tasks_per_node": 2, "exclude_nodes": ["node[1-2]"]}))
    first = wait_until(lambda: ranks(run, 1), 600, run.log)
    node = first[0][0]
    run.wait_for_fault()
    down(node)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    assert run.finish()["x"] == toy.expected_state(40)
    assert run.events() == ["start", "start", "complete"]
    second = (run.dir / "train" / "ranks-0.log").read_text().splitlines()[1].split()
    assert second[0] != node
    assert int(second[-1]) > 1  # from a checkpoint


def test_a_slow_node_is_found_before_training(cluster: None, tmp_path: Path) -> None:
    """`node-test` on three nodes, of which the one of task 1 multiplies matrices a hundred times more slowly."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import time\n"
        "from tsugiki.pretrain.runtime import product\n"
        "original = product.torch.mm\n"
        "product.torch.mm = lambda *matrices: (time.sleep(0.5), original(*matrices))[1]\n"
    )
    command = f"{sys.executable} -m tsugiki node-test --compute 0.05 --memory 0 --network 0 --disk 0"
    check = f'[ "$SLURM_PROCID" != 1 ] || export PYTHONPATH={slow}:$PWD:${{PYTHONPATH:-}}; {command}'
    run = Run(tmp_path, "slow-node")
    run.submit(site(
        train={"nodes": 2, "tasks_per_node": 2, "spare_nodes": 1},
        restart={"stop_seconds_before_limit": 10, "node_check": check},
    ))  # fmt: skip
    assert run.finish(300)["x"] == toy.expected_state(20), run.log()
    found = re.findall(r"^(node\d+): BAD NODE: compute: .* of the median of 3 nodes", run.log(), re.MULTILINE)
    assert len(found) == 1, run.log()
    hosts = {host for host, _ in ranks(run, 1)}
    assert len(hosts) == 2 and found[0] not in hosts


def test_time_limit_twice_gives_the_same_result(runs: dict[str, Run]) -> None:
    run = runs["limit"]
    assert run.finish(1200)["x"] == toy.expected_state(60)
    assert run.starts() >= 3
    requeues = [event.detail for event in jobs.history(run.dir) if event.event == "requeue"]
    assert requeues == ["stopped by USR1"] * (run.starts() - 1)
