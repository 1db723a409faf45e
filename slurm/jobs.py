"""The jobs of a run: the record of what was submitted, their states, cancelling them.

``<run>/slurm/jobs.json`` lists the jobs that were submitted, ``<run>/slurm/history.tsv`` is what the jobs
themselves wrote about their starts and ends (see ``slurm/job.sh``). Together they tell what happened
where Slurm keeps no accounting and has forgotten the job.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import ConfigError, EnvironmentError_
from tsugiki.experiment.files import write_text_atomically
from tsugiki.experiment.run.status import JobStatus, RunStatus, read_status
from tsugiki.slurm import client

FOLDER = "slurm"


class Job(StrictModel):
    """One submitted job."""

    job_id: int
    stage: str
    link: int = 0
    """Position in a chain of jobs that continue each other."""
    kind: Literal["stage", "array"] = "stage"
    after: list[int] = []
    """Jobs it waits for."""
    chain: str
    """Name of the submission."""
    cluster: str
    submitted: str
    """UTC, ISO 8601."""


class JobRecord(StrictModel):
    """``jobs.json``."""

    schema_version: Literal[1] = 1
    configuration: str = ""
    """Hash of the configuration the jobs were submitted with."""
    jobs: list[Job] = []

    @classmethod
    def load(cls, run_dir: Path) -> JobRecord:
        """The record of a run; empty when nothing was submitted.

        Raises:
            ConfigError: the file is damaged.
        """
        path = run_dir / FOLDER / "jobs.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            raise ConfigError(
                "the record of submitted jobs is damaged", where=path, got=error,
                fix="see `squeue --me` for jobs that still run, then delete the file",
            ) from error  # fmt: skip

    def save(self, run_dir: Path) -> None:
        """Write the record atomically."""
        write_text_atomically(run_dir / FOLDER / "jobs.json", self.model_dump_json(indent=2) + "\n")


_OVER = frozenset({"complete", "gave-up", "cancelled", "next-link", "failed", "refused"})
"""Events after which a job does not start again."""


@dataclass(frozen=True)
class Event:
    """One line of ``history.tsv``."""

    time: int
    job_id: int
    restart: int
    stage: str
    event: str
    nodes: str
    detail: str


def history(run_dir: Path) -> list[Event]:
    """What the jobs wrote about themselves, oldest first."""
    events: list[Event] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run_dir / FOLDER / "history.tsv").read_text(encoding="utf-8").splitlines():
            fields = line.split("\t")
            if len(fields) == 7 and all(field.isdigit() for field in fields[:3]):
                moment, job_id, restart = map(int, fields[:3])
                events.append(Event(moment, job_id, restart, *fields[3:]))
    return events


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the record: two people submitting the same run at once must not both submit it."""
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def status(run_dir: Path) -> RunStatus:
    """Stages, training and, where jobs were submitted, their states.

    Works without accounting and, for what the run directory tells, without Slurm.

    Raises:
        ConfigError: there is no run here.
    """
    found = read_status(run_dir)
    record = JobRecord.load(run_dir)
    if not record.jobs:
        return found
    events = history(run_dir)
    try:
        states = _states(record.jobs) if client.available() else {}
    except EnvironmentError_ as error:
        last = {event.job_id: event.event for event in events}
        unknown = client.JobState("UNKNOWN", f"Slurm does not answer: {error.what}: {error.got or error.fix}")
        states = {job.job_id: unknown for job in record.jobs if last.get(job.job_id) not in _OVER}
    complete = {stage.name for stage in found.stages if stage.state == "complete"}
    jobs = [_job_status(job, record, states, events, complete) for job in record.jobs]
    perhaps = {number for number, state in states.items() if state.live or state.state == "UNKNOWN"}
    return found.with_jobs(jobs, perhaps)


def _job_status(
    job: Job, record: JobRecord, states: dict[int, client.JobState], events: list[Event], complete: set[str]
) -> JobStatus:
    mine = [event for event in events if event.job_id == job.job_id]
    state = states.get(job.job_id)
    starts = [event for event in mine if event.event == "start"]
    last = mine[-1] if mine else None
    detail = last.detail if last is not None and last.event not in ("start", "complete") else ""
    name = state.state if state is not None else _remembered(last, job.stage in complete)
    if state is not None and state.live:
        detail = "; ".join(part for part in (_waiting(job, record, state), detail) if part)
    elif name == "CANCELLED" and not starts:
        detail = _why_cancelled(job, record, states, events) or detail
    elif state is not None and state.reason and (not detail or name == "UNKNOWN"):
        detail = state.reason
    return JobStatus(
        job_id=job.job_id,
        stage=job.stage,
        kind=job.kind,
        state=name,
        restarts=max((event.restart for event in mine), default=0),
        elapsed=state.elapsed if state is not None and state.elapsed != "0:00" else "",
        nodes=(state.nodes if state is not None and state.nodes else starts[-1].nodes if starts else ""),
        detail=detail,
    )


def _remembered(last: Event | None, complete: bool) -> str:
    """State of a job that Slurm has forgotten, from its own last words."""
    if last is None:
        return "COMPLETED" if complete else "UNKNOWN"
    if last.event == "complete":
        return "COMPLETED"
    return "UNKNOWN" if last.event == "start" else "FAILED"


def _waiting(job: Job, record: JobRecord, state: client.JobState) -> str:
    if job.kind == "array" and state.reason.startswith(tuple("123456789")):
        return state.reason
    if state.state != "PENDING":
        return f"limit {state.limit}" if state.limit else ""
    if state.reason == "Dependency":
        stages = {other.job_id: other.stage for other in record.jobs}
        return "waits for " + ", ".join(f"{stages.get(number, 'job')} ({number})" for number in job.after)
    return f"waits: {state.reason}" if state.reason else "waits"


def _why_cancelled(
    job: Job, record: JobRecord, states: dict[int, client.JobState], events: list[Event]
) -> str:
    """The nearest job up the chain that ran and did not complete, and its last words."""
    by_id = {other.job_id: other for other in record.jobs}
    pending, seen = list(job.after), set[int]()
    while pending:
        number = pending.pop(0)
        if number in seen or number not in by_id:
            continue
        seen.add(number)
        mine = [event for event in events if event.job_id == number]
        state = states.get(number)
        if mine and mine[-1].event != "complete" and not (state and state.live):
            words = mine[-1].detail or (state.state if state else "did not complete")
            return f"never started: {by_id[number].stage} (job {number}) failed: {words}"
        if (
            not mine
            and state is not None
            and not state.live
            and state.state not in ("COMPLETED", "CANCELLED")
        ):
            return f"never started: {by_id[number].stage} (job {number}) ended as {state.state}"
        pending += by_id[number].after
    return ""


def cancel(
    run_dir: Path,
    *,
    wait_seconds: float = 90.0,
    announce: Callable[[str], None] = print,
) -> list[int]:
    """Stop all jobs of a run: those that wait at once, those that run after saving a checkpoint.

    Job arrays are stopped at once as well: a marker stands for every shard that they finished.

    Args:
        run_dir: the run.
        wait_seconds: how long a running job may take to save; then it is cancelled. 0 does not ask.
        announce: receives lines for the console.

    Returns:
        The jobs that were waiting or running.

    Raises:
        ConfigError: there is no run here.
        EnvironmentError_: Slurm does not answer.
    """
    if not run_dir.is_dir():
        raise ConfigError("no run here", where=run_dir)
    with locked(run_dir):
        record = JobRecord.load(run_dir)
        live = {number: state for number, state in _states(record.jobs).items() if state.live}
        if not live:
            announce("no job of this run waits or runs")
            return []
        with (run_dir / FOLDER / "cancel").open("a", encoding="utf-8") as file:
            file.writelines(f"{number}\n" for number in live)
        arrays = {job.job_id for job in record.jobs if job.kind == "array"}
        running = [n for n, state in live.items() if state.state == "RUNNING" and n not in arrays]
        client.cancel([number for number in live if number not in running])
        if running and wait_seconds > 0:
            names = ", ".join(f"{job.stage} ({job.job_id})" for job in record.jobs if job.job_id in running)
            announce(f"asked to save and stop: {names}")
            for number in running:
                client.signal_batch(number, "USR1")
            running = _wait_until_ended(record, running, wait_seconds)
            if running:
                announce(f"did not stop within {wait_seconds:.0f} s, cancelled")
        client.cancel(sorted(live))  # a job that was just being requeued as well
        announce(f"cancelled {len(live)} jobs: {', '.join(map(str, sorted(live)))}")
        return sorted(live)


def _states(jobs: Sequence[Job]) -> dict[int, client.JobState]:
    return client.states(job.job_id for job in jobs)


def _wait_until_ended(record: JobRecord, running: list[int], seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while running and time.monotonic() < deadline:
        time.sleep(1.0)
        with contextlib.suppress(EnvironmentError_):  # busy for a moment: ask again
            states = _states([job for job in record.jobs if job.job_id in running])
            running = [n for n in running if n in states and states[n].state == "RUNNING"]
    return running
