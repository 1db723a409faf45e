"""The smoke experiment through `tsugiki submit`, job arrays, and what Slurm says to every kind of script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, ROOT, SETTINGS, wait_until
from toy_steps import Mark

from experiment.errors import ConfigError
from slurm import client, jobs
from slurm.arrays import SiteExecutor
from slurm.config import ArrayConfig, ClusterConfig
from slurm.submit import submit

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def log(run_dir: Path) -> str:
    files = sorted((run_dir / "slurm" / "logs").glob("*.log"))
    return "\n".join(f"== {file.name}\n{file.read_text()[-2000:]}" for file in files)


def losses(run_dir: Path) -> dict[int, float]:
    for name in ("train", "train.partial"):
        file = run_dir / name / "metrics.jsonl"
        if file.is_file():
            lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
            return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    return {}


def test_array_task_that_failed_is_redone_alone(tmp_path: Path) -> None:
    site = ClusterConfig.model_validate(
        {
            "common": {"memory": "1G", "time_limit_hours": 0.2},
            "environment": {"variables": {"PYTHONPATH": str(HERE)}},
        }
    )

    def attempt() -> int | None:
        executor = SiteExecutor(
            site,
            "corpus",
            ArrayConfig(tasks=4),
            [Mark(tmp_path, bad=2)],
            6,
            tmp_path / "logs",
            job_name="toy-array",
        )
        return executor.submit()

    first = attempt()
    assert first is not None
    state = wait_until(lambda: _ended(first), 60, lambda: _outputs(tmp_path))
    assert state.state == "FAILED"
    assert state.reason == "3 tasks: 2 COMPLETED, 1 FAILED"  # six shards on at most four tasks: two each
    (tmp_path / "repaired").touch()
    second = attempt()
    assert second is not None
    assert wait_until(lambda: _ended(second), 60, lambda: _outputs(tmp_path)).state == "COMPLETED"
    runs = {rank: len((tmp_path / f"rank-{rank}").read_text().split()) for rank in range(6)}
    # rank 3 shared the array task of rank 2, so it had not run before
    assert runs == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert attempt() is None


def _ended(job: int) -> client.JobState | None:
    state = client.states([job]).get(job)
    return None if state is None or state.live else state


def _outputs(folder: Path) -> str:
    return "\n".join(file.read_text()[-2000:] for file in folder.rglob("*.out"))


def test_array_refused_by_slurm(tmp_path: Path) -> None:
    site = ClusterConfig.model_validate({"common": {"partition": "nowhere"}})
    executor = SiteExecutor(site, "corpus", ArrayConfig(), [Mark(tmp_path, bad=9)], 2, tmp_path, job_name="x")
    with pytest.raises(
        ConfigError, match=r"(?s)array of stage 'corpus'.*invalid partition.*partitions here: main"
    ):
        executor.submit()


def test_dry_run_of_32_nodes_with_8_gpus(tmp_path: Path) -> None:
    lines: list[str] = []
    cluster = ["cluster.train.nodes=32", "cluster.cpu.partition=main", "cluster.gpu.partition=main"]
    submit(
        ROOT / "configs" / "smoke.yaml", "gpu",
        [
            f"run_dir={tmp_path / 'run'}", *cluster, "cluster.train.partition=main", "train.global_batch=256",
            "tokens.mixture.total_tokens=1000000", "cluster.cpu.cpus_per_task=8", "cluster.cpu.memory=8G",
            "cluster.gpu.memory=8G", "cluster.stages={}", "cluster.train.cpus_per_task=1",
            "cluster.stages.graft.memory=8G", "cluster.stages.export.memory=8G",
        ],
        dry_run=True, announce=lines.append,
    )  # fmt: skip
    text = "\n".join(lines)
    answers = [line for line in lines if line.startswith("# Slurm says:")]
    assert len(answers) == 9
    assert not [line for line in answers if "REFUSED" in line]
    assert "using 256 processors on nodes node[1-32]" in text
    for expected in ("--nodes=32", "--ntasks-per-node=8", "--gpus-per-node=8", "afterok:<graft>"):
        assert expected in text
    assert not (tmp_path / "run").exists()
    lines.clear()
    submit(
        ROOT / "configs" / "smoke.yaml", "local",
        [f"run_dir={tmp_path / 'run'}", "cluster.train.nodes=64", "train.global_batch=128"],
        dry_run=True, announce=lines.append,
    )  # fmt: skip
    assert [line for line in lines if "REFUSED" in line and "Node count" in line]


def test_processes_must_hold_whole_model_copies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        submit(ROOT / "configs" / "smoke.yaml", "local", ["cluster.train.nodes=3"], dry_run=True)
    assert "6 processes = 3 nodes x 2 per node" in str(caught.value)
    assert "multiple of tensor x pipeline x context = 4" in str(caught.value)


def test_smoke_experiment_interrupted_twice_equals_a_run_by_hand(smoke: Path, tmp_path: Path) -> None:
    """2 nodes x 2 tasks, TP2 x PP2 over gloo, to a finished export; the same by plain sbatch, undisturbed."""
    ids = {(job.stage, job.kind): job.job_id for job in jobs.JobRecord.load(smoke).jobs}
    wait_until(lambda: (smoke / "graft" / "manifest.json").is_file(), 400, lambda: log(smoke))
    assert client.states([ids["corpus", "array"]])[ids["corpus", "array"]].reason == "3 tasks: 3 COMPLETED"

    by_hand = tmp_path / "run"
    by_hand.mkdir()
    for stage in ("corpus", "base", "tokenizer", "tokens", "graft"):
        shutil.copytree(smoke / stage, by_hand / stage)
    settings = [part for setting in [*SETTINGS, f"run_dir={by_hand}"] for part in ("--set", setting)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    hand_job = subprocess.run(
        [
            "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=4G",
            f"--output={tmp_path}/train.log", "slurm/train.sbatch", "configs/smoke.yaml", *settings,
        ],
        cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    hand_state = wait_until(lambda: _ended(int(hand_job)), 300, lambda: (tmp_path / "train.log").read_text())
    assert hand_state.state == "COMPLETED", (tmp_path / "train.log").read_text()

    train = ids["train", "stage"]
    subprocess.run(["scontrol", "release", str(train)], check=True)
    for step in (5, 20):
        wait_until(lambda step=step: max(losses(smoke), default=0) >= step, 240, lambda: log(smoke))
        # what --signal=B:USR1@… does ahead of the time limit
        subprocess.run(["scancel", "--signal=USR1", "--batch", str(train)], check=True)
    last = ids["report", "stage"]
    wait_until(lambda: _ended(last), 600, lambda: f"{jobs.status(smoke).to_text()}\n{log(smoke)}")

    events = [event.event for event in jobs.history(smoke) if event.stage == "train"]
    assert events == ["start", "requeue", "start", "requeue", "start", "complete"]
    assert losses(smoke) == losses(by_hand)
    assert len(losses(smoke)) == 48
    status = jobs.status(smoke)
    assert {stage.state for stage in status.stages} == {"complete"}
    assert {job.state for job in status.jobs} == {"COMPLETED"}
    assert next(job for job in status.jobs if job.stage == "train").restarts == 2
    assert (smoke / "export" / "config.json").is_file()
    assert "step" in next((smoke / "slurm" / "logs").glob("smoke-train-*.log")).read_text()
    again: list[Any] = submit(
        ROOT / "configs" / "smoke.yaml", "local", [*SETTINGS, f"run_dir={smoke}"], announce=lambda line: None
    ).jobs
    assert again == []
