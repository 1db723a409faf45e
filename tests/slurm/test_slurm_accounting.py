"""Sites with accounting: states from sacct, accounts and QOS that are refused, preemption by QOS."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy
from conftest import wait_until
from toy_run import Run, site

from tsugiki.experiment.errors import ConfigError
from tsugiki.slurm import client, jobs

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("accounting")]


@pytest.fixture(scope="module")
def ended(accounting: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Two runs submitted before anything else: Slurm needs a minute to forget them."""
    folder = tmp_path_factory.mktemp("ended")
    runs = {
        "plain": Run(folder / "plain", "plain"),
        "data-error": Run(folder / "data-error", "data-error", corpus={"fail": True}),
    }
    for run in runs.values():
        run.submit()
    yield runs
    for run in runs.values():
        jobs.cancel(run.dir, wait_seconds=0, announce=lambda line: None)


@pytest.mark.parametrize(
    ("qos", "restart", "again"),
    [
        ("normal", {"requeue": True}, "1 restart"),  # preempted jobs are requeued
        ("cheap", {"requeue": False, "links": 2}, ""),  # preempted jobs are cancelled
    ],
)
def test_preempted_training_goes_on(
    qos: str, restart: dict[str, int], again: str, ended: dict[str, Run], tmp_path: Path
) -> None:
    hang = {"kind": "hang", "rank": 0, "step": 13}  # until it is preempted, however long that takes
    train = {"steps": 40, "step_seconds": 0.1, "save_every": 5, "fault": hang}
    run = Run(tmp_path, "preempted", train=train)
    shape = {"nodes": 2, "tasks_per_node": 2, "exclusive": True, "qos": qos}
    run.submit(site(train=shape, restart={**restart, "stop_seconds_before_limit": 10}))
    run.wait_for_fault()
    urgent = ["sbatch", "--parsable", "--qos=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    number = int(subprocess.check_output([*urgent, "--wrap=true"], text=True))
    assert run.finish()["x"] == toy.expected_state(40)
    assert client.states([number])[number].state == "COMPLETED"
    assert run.events() == ["start", "ended", "start", "complete"]
    status = run.status()
    assert re.search(rf"train +COMPLETED .*{again}", status), status
    assert ("PREEMPTED" in status) == (qos == "cheap")


@pytest.mark.parametrize(
    ("request_", "message", "fix"),
    [
        ({"account": "nobody"}, "Invalid account or account/partition combination", "set `account`"),
        ({"qos": "nothing"}, "Invalid qos specification", "set `qos`"),
        ({"qos": "others"}, "Invalid qos specification", "set `qos`"),  # exists, but not for this user
        ({"qos": "small"}, "Job violates accounting/QOS policy", "ask for less"),  # one node
    ],
)
def test_wrong_account_or_qos(request_: dict[str, str], message: str, fix: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "refused")
    with pytest.raises(ConfigError) as caught:
        run.submit(site(train={"nodes": 2, "tasks_per_node": 2, **request_}))
    text = str(caught.value)
    assert "Slurm refused the job of stage 'train'" in text
    assert message in text
    assert fix in text
    assert jobs.JobRecord.load(run.dir).jobs == []
    lines: list[str] = []
    run.submit(site(train={"nodes": 2, "tasks_per_node": 2, **request_}), dry_run=True)
    lines = [line for line in run.lines if line.startswith("# Slurm says: REFUSED")]
    assert len(lines) == 1
    assert message in lines[0]


def test_status_knows_from_accounting_what_slurm_has_forgotten(ended: dict[str, Run]) -> None:
    ids = [job.job_id for run in ended.values() for job in jobs.JobRecord.load(run.dir).jobs]
    assert len(ids) == 6

    def remembered() -> str:
        command = ["squeue", "-h", "-t", "all", "-o", "%i", f"--jobs={','.join(map(str, ids))}"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    wait_until(lambda: not remembered(), 600, remembered)
    found = {name: {job.stage: job for job in jobs.status(run.dir).jobs} for name, run in ended.items()}
    assert {stage: job.state for stage, job in found["plain"].items()} == {
        "corpus": "COMPLETED", "train": "COMPLETED", "export": "COMPLETED",
    }  # fmt: skip
    assert found["plain"]["train"].nodes == "node[101-102]"
    assert re.fullmatch(r"00:0[0-3]:\d\d", found["plain"]["train"].elapsed)
    assert {stage: job.state for stage, job in found["data-error"].items()} == {
        "corpus": "FAILED", "train": "CANCELLED", "export": "CANCELLED",
    }  # fmt: skip
    assert found["data-error"]["export"].detail.startswith("never started: corpus (job")
    # What is complete is not submitted again, what failed is.
    assert ended["plain"].submit().jobs == []
    assert [job.stage for job in ended["data-error"].submit().jobs] == ["corpus", "train", "export"]
