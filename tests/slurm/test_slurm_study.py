"""A study on Slurm: what trials share is made by one trial's jobs, for which the others wait."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import toy_study
from conftest import wait_until

from tsugiki.slurm import client, jobs
from tsugiki.slurm.config import ClusterConfig
from tsugiki.study.cluster import submit_study
from tsugiki.study.config import StudyConfig
from tsugiki.study.trials import make_study

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def test_trials_wait_for_the_jobs_that_make_what_they_take(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("name: toy\n")
    config = StudyConfig(
        name="s", experiment=str(tmp_path / "toy.yaml"), run_dir=str(tmp_path / "runs" / "s"),
        grid={"train.rate": [1e-4, 1e-3, 1e-2]},
    )  # fmt: skip
    study = make_study(config, toy_study.load)
    site = ClusterConfig.model_validate(
        {
            "name": "test",
            "common": {"time_limit_hours": 0.5, "memory": "500M", "cpus_per_task": 1},
            "stages": {"corpus": {"sbatch_flags": ["--hold"]}},  # until all are submitted
            "environment": {"command": f"{sys.executable} {toy_study.__file__}"},
        }
    )
    submissions = submit_study(study, site, lambda line: None)
    first, *others = submissions.values()
    tokens = next(job.job_id for job in first.jobs if job.stage == "tokens")
    assert [submission.jobs[0].after for submission in others] == [[tokens], [tokens]]
    again = submit_study(study, site, lambda line: None)
    assert sum(len(submission.jobs) for submission in again.values()) == 0  # nothing twice
    numbers = [job.job_id for submission in submissions.values() for job in submission.jobs]
    assert len(numbers) == 12
    held = [job.job_id for item in submissions.values() for job in item.jobs if job.stage == "corpus"]
    subprocess.run(["scontrol", "release", *map(str, held)], check=True)
    log = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    wait_until(lambda: not any(state.live for state in client.states(numbers).values()), 200, log)
    counted = Counter(stage for stage, _ in toy_study.made(study.directory))
    assert counted == {"corpus": 1, "tokens": 1, "train": 3, "evaluate": 3}, jobs.history(first.run_dir)
