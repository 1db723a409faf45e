"""States of jobs where Slurm is absent, or has forgotten them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsugiki.experiment.errors import ConfigError
from tsugiki.slurm import client, jobs
from tsugiki.slurm.jobs import Job, JobRecord


def job(number: int, stage: str, after: int | None = None) -> Job:
    return Job(
        job_id=number,
        stage=stage,
        after=[] if after is None else [after],
        chain="c",
        cluster="x",
        submitted="-",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("name: x\n")
    record = JobRecord(jobs=[job(1, "corpus"), job(2, "tokens", 1), job(3, "train", 2), job(4, "export", 3)])
    record.save(tmp_path)
    rows = [
        "10 1 0 corpus start node1 progress_0", "20 1 0 corpus complete node1 ",
        "30 2 0 tokens start node1 progress_0",
        "40 3 0 train start node[1-2] progress_0", "50 3 0 train requeue node[1-2] stopped_by_USR1",
        "60 3 1 train start node[1-2] progress_9", "70 3 1 train gave-up node[1-2] no_space",
        "80 4 half a line",
    ]  # fmt: skip
    (tmp_path / "slurm" / "history.tsv").write_text("".join(row.replace(" ", "\t") + "\n" for row in rows))
    return tmp_path


def test_the_jobs_own_words_tell_what_slurm_does_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not client.available()
    found = {item.stage: item for item in jobs.status(run).jobs}
    assert {stage: item.state for stage, item in found.items()} == {
        "corpus": "COMPLETED", "tokens": "UNKNOWN", "train": "FAILED", "export": "UNKNOWN",
    }  # fmt: skip
    assert (found["train"].restarts, found["train"].detail) == (1, "no_space")


# In the format of `sacct -n -X -P`: a finished job, an array of which one task failed, a cancelled job.
SACCT = """#!/bin/sh
cat <<END
1|COMPLETED|00:00:07|00:30:00|node1
3_0|COMPLETED|00:00:02|00:30:00|node1
3_1|FAILED|00:00:02|00:30:00|node2
4|CANCELLED by 0|00:00:00|00:30:00|None assigned
END
"""


def test_accounting_is_asked_for_what_squeue_has_forgotten(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n"
    for name, text in {"squeue": squeue, "sacct": SACCT, "sbatch": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    states = client.states([1, 2, 3, 4])
    assert {number: state.state for number, state in states.items()} == {
        1: "COMPLETED",
        3: "FAILED",
        4: "CANCELLED",
    }
    assert states[3].reason == "2 tasks: 1 COMPLETED, 1 FAILED"
    export = next(item for item in jobs.status(run).jobs if item.stage == "export")
    assert (export.state, export.detail) == ("CANCELLED", "never started: train (job 3) failed: no_space")


def test_stages_say_which_job_works_on_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the format of `squeue -h -r -t all -o …`: training runs, the export waits for it."""
    rows = ["3\tRUNNING\tNone\t1:02\t10:00\tnode[1-2]", "4\tPENDING\tDependency\t0:00\t10:00\t"]
    squeue = "#!/bin/sh\nprintf '%s\\n' " + " ".join(f"'{row}'" for row in rows) + "\n"
    for name, text in {"squeue": squeue, "sacct": "#!/bin/sh\nexit 1\n", "sbatch": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (run / "config.yaml").write_text("name: x\nbase: {scratch: {}}\n")
    for stage in ("train", "tokens"):
        (run / f"{stage}.partial").mkdir()
    stages = {stage.name: (stage.state, stage.detail) for stage in jobs.status(run).stages}
    assert stages["tokens"] == ("partial", "interrupted")  # its job is gone
    assert stages["train"] == ("partial", "job 3 RUNNING")
    assert stages["export"] == ("absent", "job 4 PENDING")
    assert stages["base"] == ("absent", "")
    text = jobs.status(run).to_text()
    assert "3        train     RUNNING    1:02  node[1-2]  1 restart  limit 10:00" in text
    assert "4        export    PENDING    waits for train (3)" in text


def test_damaged_record_is_an_error_with_a_way_out(run: Path) -> None:
    (run / "slurm" / "jobs.json").write_text("{")
    with pytest.raises(ConfigError, match="squeue --me"):
        jobs.status(run)


def test_cancel_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run here"):
        jobs.cancel(tmp_path / "nothing")
