"""A toy experiment submitted to the test Slurm, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import toy
from conftest import HERE, wait_until

from tsugiki.slurm import client, jobs
from tsugiki.slurm.config import ClusterConfig
from tsugiki.slurm.submit import Submission, submit_experiment


def site(**changes: Any) -> ClusterConfig:
    values: dict[str, Any] = {
        "name": "test",
        "common": {"time_limit_hours": 0.5, "memory": "500M", "cpus_per_task": 1},
        "train": {"nodes": 2, "tasks_per_node": 2},
        "environment": {
            "command": f"{sys.executable} {HERE / 'toy.py'}",
            "variables": {"TSUGIKI_STALE_SECONDS": 1},
        },
        "restart": {"stop_seconds_before_limit": 10, "exclude_node_after_failures": 9},
    }
    return ClusterConfig.model_validate({**values, **changes})


class Run:
    """One toy experiment and its submission."""

    def __init__(self, folder: Path, name: str, **config: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "toy.yaml"
        self.config = {"name": name, "run_dir": str(folder / "run"), **config}
        self.dir = folder / "run"
        self.lines: list[str] = []
        self.submission: Submission | None = None

    def submit(self, cluster: ClusterConfig | None = None, **options: Any) -> Submission:
        self.file.write_text(json.dumps(self.config))
        self.lines = []
        self.submission = submit_experiment(
            toy.load(self.file), cluster or site(), announce=self.lines.append, **options
        )
        return self.submission

    def job(self, stage: str) -> int:
        record = jobs.JobRecord.load(self.dir)
        return next(job.job_id for job in record.jobs if job.stage == stage)

    def state(self, stage: str) -> str:
        return client.states([self.job(stage)])[self.job(stage)].state

    def events(self, stage: str = "train") -> list[str]:
        return [event.event for event in jobs.history(self.dir) if event.stage == stage]

    def starts(self, stage: str = "train") -> int:
        return self.events(stage).count("start")

    def log(self) -> str:
        files = sorted((self.dir / "slurm" / "logs").glob("*.log"))
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in files)

    def wait_for(self, event: str, stage: str = "train", seconds: float = 900, count: int = 1) -> None:
        wait_until(
            lambda: self.events(stage).count(event) >= count, seconds,
            lambda: f"{event} of {stage}: {self.events(stage)}\n{self.log()}",
        )  # fmt: skip

    def wait_for_fault(self) -> None:
        """Until the fault of the training has happened: before that, another start would meet it."""
        wait_until((self.dir / "train.partial" / "faults").is_file, 600, self.log)

    def finish(self, seconds: float = 900) -> dict[str, Any]:
        """Wait until every job has ended; the exported state."""
        record = jobs.JobRecord.load(self.dir)
        ids = [job.job_id for job in record.jobs]
        wait_until(
            lambda: not any(state.live for state in client.states(ids).values()), seconds,
            lambda: f"end of {client.states(ids)}\n{self.log()}",
        )  # fmt: skip
        result = self.dir / "export" / "result.json"
        return json.loads(result.read_text()) if result.is_file() else {}

    def status(self) -> str:
        return jobs.status(self.dir).to_text()


def ranks(run: Run, start: int) -> list[tuple[str, int]]:
    """Host and process of every rank of the n-th start, once all four are there."""
    found = []
    for rank in range(4):
        lines: list[str] = []
        for folder in ("train.partial", "train"):  # renamed when the stage is complete
            with contextlib.suppress(FileNotFoundError):
                lines = lines or (run.dir / folder / f"ranks-{rank}.log").read_text().splitlines()
        if len(lines) < start:
            return []
        host, process, *_ = lines[start - 1].split()
        found.append((host, int(process)))
    return found
