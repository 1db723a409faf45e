"""Submitting and cancelling where Slurm is slow, silent or interrupted: its commands are stand-ins."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tsugiki.experiment.errors import ConfigError, EnvironmentError_
from tsugiki.experiment.run.graph import Graph
from tsugiki.slurm import client, jobs
from tsugiki.slurm.jobs import Job, JobRecord
from tsugiki.slurm.submit import submit

ROOT = Path(__file__).parents[3]
STAGES = ["corpus", "base", "tokenizer", "tokens", "graft", "train", "export", "evaluate", "report"]


class Slurm:
    """A folder of commands that note down how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo"):
            self.set(name, "")
        self.set("sbatch", 'wc -l <"${0%/*}/sbatch.calls"')  # jobs 1, 2, 3, ...

    def set(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "$*" >>"$0.calls"\n{script}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.is_file() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    return found


def smoke(run_dir: Path, *overrides: str, **options: Any) -> list[Job]:
    return submit(ROOT / "configs/smoke.yaml", "local", [f"run_dir={run_dir}", *overrides], **options).jobs


def record(run_dir: Path, *parts: tuple[str, str]) -> Path:
    """A run whose record has the jobs 1, 2, ... of (stage, kind)."""
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("name: x\n")
    listed = [
        Job(job_id=number, stage=stage, kind=kind, chain="c", cluster="x", submitted="-")  # type: ignore[arg-type]
        for number, (stage, kind) in enumerate(parts, 1)
    ]
    JobRecord(jobs=listed).save(run_dir)
    return run_dir


def test_squeue_that_fails_is_not_an_empty_queue(slurm: Slurm, tmp_path: Path) -> None:
    """Else whatever waits or runs would be submitted a second time."""
    run_dir = tmp_path / "run"
    assert len(smoke(run_dir)) == len(slurm.calls("sbatch")) == 9
    slurm.set("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(EnvironmentError_, match=r"squeue failed(?s:.*)Unable to contact slurm controller"):
        smoke(run_dir)
    with pytest.raises(EnvironmentError_, match="squeue failed"):
        jobs.cancel(run_dir)
    assert len(slurm.calls("sbatch")) == 9

    with (run_dir / "slurm/history.tsv").open("w") as file:
        file.writelines(
            f"{line}\n".replace(" ", "\t")
            for line in (
                "10 1 0 corpus start n1 0",
                "20 1 0 corpus complete n1 ",
                "30 6 0 train requeue n1 -",
            )
        )
    (run_dir / "train.partial").mkdir()
    status = jobs.status(run_dir)
    states = {job.stage: (job.state, job.detail) for job in status.jobs}
    words = "Slurm does not answer: squeue failed: slurm_load_jobs error: Unable to contact slurm controller"
    assert states["corpus"] == ("COMPLETED", "")
    assert states["train"] == states["export"] == ("UNKNOWN", words)
    assert next(stage.detail for stage in status.stages if stage.name == "train") == "job 6 UNKNOWN"

    slurm.set("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")  # all forgotten
    assert client.states([1, 2]) == {}


def test_record_lists_every_job_before_the_next_is_submitted(slurm: Slurm, tmp_path: Path) -> None:
    """A submission that is killed leaves no job that `status`, `cancel` and `submit` do not know."""
    run_dir = tmp_path / "run"
    slurm.set(
        "sbatch", 'n=$(wc -l <"$0.calls"); [ "$n" -lt 5 ] || { kill -KILL "$PPID"; sleep 0.2; }; echo "$n"'
    )
    command = [sys.executable, "-m", "tsugiki", "submit", "configs/smoke.yaml", "--cluster", "local"]
    answer = subprocess.run([*command, "--set", f"run_dir={run_dir}"], capture_output=True, check=False)
    assert answer.returncode == -signal.SIGKILL
    listed = JobRecord.load(run_dir).jobs
    assert [(job.job_id, job.stage) for job in listed] == list(enumerate(STAGES[:4], 1))

    # Submitted again, what waits is kept and the rest goes after it.
    slurm.set("squeue", "printf '%s\\tPENDING\\tPriority\\t0:00\\t10:00\\t\\n' 1 2 3 4")
    slurm.set("sbatch", 'wc -l <"${0%/*}/sbatch.calls"')
    assert [job.stage for job in smoke(run_dir)] == STAGES[4:]
    assert "--dependency=afterok:4" in slurm.calls("sbatch")[5]
    assert [job.stage for job in JobRecord.load(run_dir).jobs] == STAGES


@pytest.mark.parametrize("overrides", [[], ["cluster.restart={requeue: false, links: 2}"]])
def test_printed_command_follows_logs_that_do_not_exist_yet(
    overrides: list[str], slurm: Slurm, tmp_path: Path
) -> None:
    run_dir = tmp_path / "a run"
    lines: list[str] = []
    submitted = smoke(run_dir, *overrides, announce=lines.append)
    (command,) = [line.strip() for line in lines if "tail -F" in line]
    follow = ["timeout", "20", "bash", "-c", f"exec {command}"]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as follower:
        for job in submitted[2:]:
            (run_dir / f"slurm/logs/smoke-{job.stage}-{job.job_id}.log").write_text(f"log of {job.job_id}\n")
        wanted = {f"log of {job.job_id}" for job in submitted[2:]}
        while wanted:
            line = follower.stdout.readline()  # type: ignore[union-attr]
            assert line, f"not followed within 20 s: {wanted}"
            wanted.discard(line.strip())
        follower.terminate()


def test_array_larger_than_the_site_allows_says_what_to_change(slurm: Slurm, tmp_path: Path) -> None:
    slurm.set(
        "sbatch",
        "echo 'sbatch: error: Batch job submission failed: Invalid job array specification' >&2; exit 1",
    )
    with pytest.raises(
        ConfigError, match=r"Invalid job array specification(?s:.*)`arrays.STAGE.tasks`.*MaxArraySize"
    ):
        smoke(tmp_path / "run", "cluster.arrays={corpus: {tasks: 2}}")


def test_commands_of_the_template_work_as_they_are(slurm: Slurm, tmp_path: Path) -> None:
    template = ROOT / "configs/clusters/template.yaml"
    commands = [line.strip("# ") for line in template.read_text().splitlines() if "tsugiki submit" in line]
    assert [("--dry-run" in command) for command in commands] == [True, False]
    for command in commands:
        words = shlex.split(command.replace("my-site.yaml", str(template)), comments=True)
        words[:1] = [sys.executable, "-m", "tsugiki"]
        words += ["--set", f"run_dir={tmp_path / 'run'}"]
        subprocess.run(words, check=True, capture_output=True)
    assert len(slurm.calls("sbatch")) == 2 * len(STAGES)  # --test-only first


def test_part_of_the_stages_where_few_jobs_may_wait(slurm: Slurm, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert [job.stage for job in smoke(run_dir, until="graft")] == STAGES[:5]
    slurm.set("squeue", "printf '%s\\tPENDING\\tPriority\\t0:00\\t10:00\\t\\n' 1 2 3 4 5")
    assert smoke(run_dir, until="graft") == []
    assert [job.stage for job in smoke(run_dir, until="train")] == ["train"]
    assert "--dependency=afterok:5" in slurm.calls("sbatch")[-1]
    with pytest.raises(ConfigError, match="--until names no stage"):
        smoke(run_dir, until="trian")


def test_refused_submission_leaves_the_record_as_it_was(slurm: Slurm, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    slurm.set("sbatch", 'n=$(wc -l <"$0.calls"); [ "$n" -lt 3 ] || { echo "no" >&2; exit 1; }; echo "$n"')
    with pytest.raises(ConfigError, match="Slurm refused the job of stage 'tokenizer'"):
        smoke(run_dir)
    assert slurm.calls("scancel") == ["1 2"]
    assert JobRecord.load(run_dir).jobs == []


def test_slurm_is_asked_before_the_run_directory_and_under_the_lock(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends between the two questions must be found complete, not submitted again."""
    run_dir = tmp_path / "run"
    smoke(run_dir)
    asked: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with (run_dir / "slurm/.lock").open("w") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            asked.append(name)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(client, "states", watched("states", client.states))
    monkeypatch.setattr(Graph, "preview", watched("preview", Graph.preview))
    smoke(run_dir)
    assert asked == ["states", "preview"]


def test_variables_of_the_submitting_job_do_not_reach_sbatch(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.set("sbatch", 'env | grep ^SLURM_ | sort >"$0.env"; wc -l <"$0.calls"')
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    environment = slurm.folder / "sbatch.env"
    smoke(tmp_path / "run")
    assert environment.read_text() == "SLURM_CONF=/etc/slurm/slurm.conf\n"
    # the array of the corpus is submitted by datatrove
    environment.unlink()
    slurm.set("sbatch", 'env | grep ^SLURM_ | sort >"$0.env"; kill -KILL "$PPID"')
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_slurm_client import *
smoke(Path({str(tmp_path / "array")!r}), "cluster.arrays={{corpus: {{tasks: 2}}}}")
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert environment.read_text() == "SLURM_CONF=/etc/slurm/slurm.conf\n"
    assert os.environ["SLURM_JOB_ID"] == "77"


def test_running_array_is_cancelled_not_asked(slurm: Slurm, tmp_path: Path) -> None:
    """Its tasks would answer the signal by requeueing themselves."""
    run_dir = record(tmp_path / "run", ("corpus", "array"), ("corpus", "stage"), ("tokens", "stage"))
    rows = ["1_0\tRUNNING", "1_1\tRUNNING", "2\tPENDING", "3\tRUNNING"]
    queue = "".join(f"{row}\\tNone\\t0:01\\t10:00\\tn1\\n" for row in rows)
    # once asked to stop, job 3 is put back into the queue by its site
    slurm.set(
        "squeue",
        f"if grep -q batch \"${{0%/*}}/scancel.calls\"; then printf '3\\tPENDING\\tBeginTime\\t0:00\\t10:00\\t\\n'; "
        f"else printf '{queue}'; fi",
    )
    assert jobs.cancel(run_dir, announce=lambda line: None) == [1, 2, 3]
    assert slurm.calls("scancel") == ["1 2", "--signal=USR1 --batch 3", "1 2 3"]


def test_scancel_that_fails_is_an_error(slurm: Slurm) -> None:
    slurm.set(
        "scancel", "echo 'scancel: error: Kill job error on job id 1: Invalid job id specified' >&2; exit 1"
    )
    client.cancel([1])  # it has ended
    slurm.set("scancel", "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(EnvironmentError_, match="scancel failed"):
        client.cancel([1])
