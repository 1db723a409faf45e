"""The smoke experiment through `tsugiki submit`, job arrays, and what Slurm says to every kind of script."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, ROOT, SETTINGS, STEPS, wait_until
from toy_steps import Mark

from tsugiki.experiment.errors import ConfigError
from tsugiki.slurm import client, jobs
from tsugiki.slurm.arrays import SiteExecutor
from tsugiki.slurm.config import ArrayConfig, ClusterConfig
from tsugiki.slurm.submit import submit

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


def array(folder: Path, step: Mark, tasks: int, requeue: bool = True) -> int | None:
    """Submit a step as an array of at most four tasks."""
    site = ClusterConfig.model_validate(
        {
            "common": {"memory": "1G", "time_limit_hours": 0.2},
            "environment": {"variables": {"PYTHONPATH": str(HERE)}},
            "restart": {"requeue": requeue},
        }
    )
    logs = folder / "logs"
    return SiteExecutor(
        site, "corpus", ArrayConfig(tasks=4), [step], tasks, logs, job_name="toy-array"
    ).submit()


@pytest.mark.usefixtures("smoke")  # whose jobs run beside the tests that do not ask for it
def test_array_task_that_failed_is_redone_alone(tmp_path: Path) -> None:
    folder = tmp_path / "50% of it"
    folder.mkdir()

    def attempt() -> int | None:
        return array(folder, Mark(folder, bad=2), 6)

    first = attempt()
    assert first is not None
    state = wait_until(lambda: _ended(first), 600, lambda: _outputs(folder))
    assert state.state == "FAILED"
    assert state.reason == "3 tasks: 2 COMPLETED, 1 FAILED"  # six shards on at most four tasks: two each
    assert len(list(folder.glob("logs/slurm_logs/*.out"))) == 3
    (folder / "repaired").touch()
    second = attempt()
    assert second is not None
    assert wait_until(lambda: _ended(second), 600, lambda: _outputs(folder)).state == "COMPLETED"
    runs = {rank: len((folder / f"rank-{rank}").read_text().split()) for rank in range(6)}
    # rank 3 shared the array task of rank 2, so it had not run before
    assert runs == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert attempt() is None


@pytest.mark.parametrize("requeue", [True, False])
def test_running_array_is_cancelled(requeue: bool, tmp_path: Path) -> None:
    """Its tasks answer the signal before a time limit by requeueing themselves, where the site allows it."""
    number = array(tmp_path, Mark(tmp_path, bad=-1, seconds=300), 2, requeue)
    assert number is not None
    job = jobs.Job(job_id=number, stage="corpus", kind="array", chain="c", cluster="test", submitted="-")
    jobs.JobRecord(jobs=[job]).save(tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("rank-*"))) == 2, 600, lambda: _outputs(tmp_path))
    assert jobs.cancel(tmp_path, announce=lambda line: None) == [number]
    state = wait_until(lambda: _ended(number), 600, lambda: str(client.states([number])))
    assert (state.state, state.reason) == ("CANCELLED", "2 tasks: 2 CANCELLED")


def test_array_task_is_not_requeued_where_the_site_forbids_it(tmp_path: Path) -> None:
    number = array(tmp_path, Mark(tmp_path, bad=-1, seconds=300), 1, requeue=False)
    assert number is not None
    wait_until(lambda: len(list(tmp_path.glob("rank-*"))) == 1, 600, lambda: _outputs(tmp_path))
    subprocess.run(["scancel", "--signal=USR1", str(number)], check=True)
    assert wait_until(lambda: _ended(number), 600, lambda: _outputs(tmp_path)).state == "FAILED"
    assert "Requeueing" not in _outputs(tmp_path)


def test_command_line_submits_shows_and_cancels(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def tsugiki(*arguments: str) -> str:
        command = [sys.executable, "-m", "tsugiki", *arguments]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    settings = [f"run_dir={run_dir}", "cluster.common.sbatch_flags=[--hold]"]
    request = ["submit", "configs/smoke.yaml", "--cluster", "local"]
    request += [part for setting in settings for part in ("--set", setting)]
    assert tsugiki(*request, "--until", "graft").count(" job ") == 5
    said = tsugiki(*request)
    assert said.count(" job ") == 4
    assert said.count("submitted already") == 5
    ids = [str(job.job_id) for job in jobs.JobRecord.load(run_dir).jobs]
    assert len(ids) == 9
    assert f"train     job {ids[5]}" in said
    assert f"follow:  tsugiki status {run_dir}" in said
    assert "nothing to submit" in tsugiki(*request)
    shown = tsugiki("status", str(run_dir))
    assert re.search(rf"{ids[0]} +corpus +PENDING +waits: JobHeldUser", shown)
    assert re.search(rf"{ids[5]} +train +PENDING +waits", shown)
    assert f"cancelled 9 jobs: {', '.join(ids)}" in tsugiki("cancel", str(run_dir))
    assert {state.state for state in client.states(map(int, ids)).values()} == {"CANCELLED"}
    assert tsugiki("status", str(run_dir)).count("CANCELLED") == 9


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


def test_array_larger_than_slurm_allows(tmp_path: Path) -> None:
    executor = SiteExecutor(
        ClusterConfig(), "corpus", ArrayConfig(tasks=20_000), [Mark(tmp_path, bad=9)], 20_000, tmp_path,
        job_name="x",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"(?s)Invalid job array specification.*lower `arrays.STAGE.tasks`"):
        executor.submit()


def test_dry_run_of_a_recipe_on_32_nodes_with_8_gpus(whole: None, tmp_path: Path) -> None:
    """The published 70B recipe with the shipped GPU cluster file; Slurm itself judges every script."""
    lines: list[str] = []
    recipe = ROOT / "configs" / "recipes" / "swallow-70b.yaml"
    where = f"run_dir={tmp_path / 'run'}"
    submit(recipe, "gpu", [where, "cluster.train.nodes=32"], dry_run=True, announce=lines.append)
    text = "\n".join(lines)
    answers = [line for line in lines if line.startswith("# Slurm says:")]
    assert len(answers) >= 8
    assert not [line for line in answers if "REFUSED" in line]
    # whole nodes of 96 cores
    assert "using 3072 processors on nodes node[1-32] in partition gpu" in text
    for expected in ("--nodes=32", "--ntasks-per-node=8", "--gpus-per-node=8", "afterok:<graft>"):
        assert expected in text
    assert not (tmp_path / "run").exists()
    lines.clear()
    submit(
        recipe,
        "gpu",
        [where, "cluster.train.nodes=64", "train.parallel.data=null"],
        dry_run=True,
        announce=lines.append,
    )
    assert [line for line in lines if "REFUSED: allocation failure: More processors requested" in line]


def test_smoke_experiment_over_two_time_limits_equals_a_run_by_hand(smoke: Path, tmp_path: Path) -> None:
    """2 nodes x 2 tasks, TP2 x PP2 over gloo, to a finished export; the same by plain sbatch, undisturbed.

    Not the last of the file: a test process that has two tests left is given its next file, which would wait.
    """
    ids = {(job.stage, job.kind): job.job_id for job in jobs.JobRecord.load(smoke).jobs}
    graft = wait_until(lambda: _ended(ids["graft", "stage"]), 1800, lambda: log(smoke))
    assert graft.state == "COMPLETED", log(smoke)
    assert client.states([ids["corpus", "array"]])[ids["corpus", "array"]].reason == "3 tasks: 3 COMPLETED"
    assert client.states([ids["tokens", "array"]])[ids["tokens", "array"]].reason == "2 tasks: 2 COMPLETED"

    by_hand = tmp_path / "run"
    by_hand.mkdir()
    for stage in ("corpus", "base", "tokenizer", "tokens", "graft"):
        shutil.copytree(smoke / stage, by_hand / stage)
    train = ids["train", "stage"]
    subprocess.run(["scontrol", "release", str(train)], check=True)
    wait_until(lambda: max(losses(smoke), default=0) >= 2, 1200, lambda: log(smoke))
    _reach_the_time_limit(smoke, train)

    # While the job waits to be started again.
    settings = [*SETTINGS, f"run_dir={by_hand}", "tracking.enabled=false"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    hand_job = subprocess.run(
        [
            "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1",
            "--mem=4G", f"--output={tmp_path}/train.log", "slurm/train.sbatch", "configs/smoke.yaml",
            *(part for setting in settings for part in ("--set", setting)),
        ],
        cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    before = max(losses(smoke))
    wait_until(lambda: max(losses(smoke)) > before, 1200, lambda: log(smoke))
    _reach_the_time_limit(smoke, train)
    hand_state = wait_until(lambda: _ended(int(hand_job)), 1200, lambda: (tmp_path / "train.log").read_text())
    assert hand_state.state == "COMPLETED", (tmp_path / "train.log").read_text()
    last = ids["report", "stage"]
    wait_until(lambda: _ended(last), 1800, lambda: f"{jobs.status(smoke).to_text()}\n{log(smoke)}")

    history = [event for event in jobs.history(smoke) if event.stage == "train"]
    requeues = [event.detail for event in history if event.event == "requeue"]
    assert requeues == ["stopped by USR1"] * 2
    assert losses(smoke) == losses(by_hand)
    assert len(losses(smoke)) == STEPS
    status = jobs.status(smoke)
    assert {stage.state for stage in status.stages} == {"complete"}
    assert {job.state for job in status.jobs} == {"COMPLETED"}
    assert next(job for job in status.jobs if job.stage == "train").restarts == len(requeues)
    assert (smoke / "export" / "config.json").is_file()
    # one log over all starts
    files = list((smoke / "slurm" / "logs").glob("smoke-train-*.log"))
    assert [file.name for file in files] == [f"smoke-train-{train}.log"]
    text = files[0].read_text()
    assert text.count("stage train on node") == len(requeues) + 1
    assert f"step {STEPS}/{STEPS}" in text
    again: list[Any] = submit(
        ROOT / "configs" / "smoke.yaml", "local", [*SETTINGS, f"run_dir={smoke}"], announce=lambda line: None
    ).jobs
    assert again == []
    _check_tracking(smoke, train, len(requeues))


def _reach_the_time_limit(run_dir: Path, job: int) -> None:
    """Stop the ranks in mid-step until Slurm's signal ahead of the time limit, then let them act on it.

    The end that follows from the limit is moved near, as limits are minutes. Every 30 s Slurm signals the jobs that
    come within 30 s of their signal: this one at the next look, 30 to 59 s before its end.
    """
    file = next((run_dir / "slurm" / "logs").glob(f"*-{job}.log"))

    def count(text: str) -> int:
        return file.read_text().count(text)

    starts, asked = count("stage train on"), "USR1: asking the ranks to save and stop"
    assert count(asked) == starts - 1
    # step 0 was the check of the nodes
    subprocess.run(["scancel", "--signal=STOP", f"{job}.1"], check=True)
    subprocess.run(["scontrol", "update", f"JobId={job}", "EndTime=now+59"], check=True)
    wait_until(lambda: count(asked) == starts, 600, lambda: log(run_dir))
    subprocess.run(["scancel", "--signal=CONT", f"{job}.1"], check=True)
    wait_until(lambda: count("; requeueing") == starts, 600, lambda: log(run_dir))
    # What the next start has, on a slow machine too.
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)


def _check_tracking(run_dir: Path, job: int, restarts: int) -> None:
    """The restarted training is one MLflow run, with the job that worked on it as tags."""
    from mlflow.tracking import MlflowClient

    store = MlflowClient(tracking_uri=f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("tsugiki")
    assert experiment is not None
    found = [
        run
        for run in store.search_runs([experiment.experiment_id])
        if run.data.tags.get("mlflow.runName") == "train"
    ]
    assert len(found) == 1
    tags = found[0].data.tags
    assert (tags["slurm.job_id"], tags["slurm.restarts"]) == (str(job), str(restarts))
    assert re.fullmatch(r"node\[?[\d,-]+\]?", tags["slurm.nodes"])
    steps = [metric.step for metric in store.get_metric_history(found[0].info.run_id, "train/loss")]
    assert steps == list(range(1, STEPS + 1))
    assert found[0].info.status == "FINISHED"


@pytest.mark.parametrize("arguments", [["train.sbatch", "x.yaml"], ["stage.sbatch", "export", "x.yaml"]])
def test_slurm_takes_the_checked_in_scripts(arguments: list[str]) -> None:
    accepted, message = client.test_only(ROOT / "slurm" / arguments[0], arguments[1:])
    assert accepted, message
    assert f"using {64 if arguments[0] == 'train.sbatch' else 8} processors on nodes node" in message


def test_processes_must_hold_whole_model_copies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        submit(ROOT / "configs" / "smoke.yaml", "local", ["cluster.train.nodes=3"], dry_run=True)
    assert "6 processes = 3 nodes x 2 per node" in str(caught.value)
    assert "multiple of tensor x pipeline x context = 4" in str(caught.value)
