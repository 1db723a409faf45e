"""Slurm's commands as functions. Works from 22.05 on, with and without accounting."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsugiki.experiment.errors import ConfigError, EnvironmentError_

LIVE_STATES = frozenset(
    {
        "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
        "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT",
    }
)  # fmt: skip
"""States of a job that will still do something."""

_SECONDS = 60
_FORMAT = "%i\t%T\t%r\t%M\t%l\t%N"


@dataclass(frozen=True)
class JobState:
    """What Slurm says about a job.

    Attributes:
        state: Slurm's state, e.g. RUNNING.
        reason: why it waits or how it ended; empty when Slurm gives none.
        elapsed: time it has run since its last start.
        limit: its time limit.
        nodes: where it runs or ran.
    """

    state: str
    reason: str = ""
    elapsed: str = ""
    limit: str = ""
    nodes: str = ""

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.state in LIVE_STATES


def available() -> bool:
    """Whether Slurm's commands are on this machine."""
    return shutil.which("sbatch") is not None


def _call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError as error:
        raise EnvironmentError_(
            f"{command[0]} is not on this machine",
            fix="run this on a login node of the cluster, or use `tsugiki run` without Slurm",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentError_(
            f"{command[0]} did not answer within {_SECONDS} s", fix="is slurmctld up? try `scontrol ping`"
        ) from error


@contextlib.contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Without the ``SLURM_*`` variables of a job or allocation in whose shell the user submits.

    sbatch hands its environment on, and srun in the new job would take them for its own options.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")  # which Slurm is talked to
    leaked = [name for name in os.environ if name.startswith("SLURM_") and name not in kept]
    removed = {name: os.environ.pop(name) for name in leaked}
    try:
        yield
    finally:
        os.environ.update(removed)


def sbatch(script: Path, arguments: Sequence[str], flags: Sequence[str] = (), *, what: str = "job") -> int:
    """Submit a script and return the job's number.

    Raises:
        ConfigError: Slurm refused; its message is part of the error.
        EnvironmentError_: no sbatch, or slurmctld does not answer.
    """
    with outside_of_jobs():
        answer = _call(["sbatch", "--parsable", *flags, str(script), *arguments])
    found = re.match(r"(\d+)", answer.stdout.strip())
    if answer.returncode == 0 and found:
        return int(found[1])
    raise refusal(script, _messages(answer.stderr) or f"exit status {answer.returncode}", what)


def refusal(script: Path, message: str, what: str) -> ConfigError:
    """The error for a script that Slurm refused, with its message and what to do about it."""
    return ConfigError(f"Slurm refused the {what}", where=script, got=message, fix=_advice(message))


def test_only(script: Path, arguments: Sequence[str]) -> tuple[bool, str]:
    """Whether Slurm would take the script, and what it says (when and where it would start)."""
    with outside_of_jobs():
        answer = _call(["sbatch", "--test-only", str(script), *arguments])
    return answer.returncode == 0, _messages(answer.stderr + answer.stdout)


def _messages(text: str) -> str:
    return "; ".join(line.removeprefix("sbatch: ").strip() for line in text.splitlines() if line.strip())


def _advice(text: str) -> str | None:
    lowered = text.lower()
    if "job array" in lowered:
        return "lower `arrays.STAGE.tasks` in the cluster file below MaxArraySize of `scontrol show config`"
    # In this order: a wrong account is "Invalid account or account/partition combination specified".
    if "violates accounting" in lowered:
        return (
            "ask for less in the cluster file, another `account` or `qos`, or fewer jobs at a time with "
            "`--until STAGE`; limits: `sacctmgr show qos`"
        )
    if "account" in lowered:
        return "set `account` in the cluster file; `sacctmgr show associations user=$USER` lists yours"
    if "partition" in lowered:
        known = _call(["sinfo", "-h", "-o", "%R"])
        names = ", ".join(dict.fromkeys(known.stdout.split()))
        return f"set `partition` in the cluster file; partitions here: {names}" if names else None
    if "qos" in lowered:
        return "set `qos` in the cluster file; `sacctmgr show qos` lists them"
    if any(hint in lowered for hint in ("node count", "configuration is not available", "more processors")):
        return "ask for no more nodes, GPUs, cores and memory in the cluster file than `sinfo` shows"
    if "time limit" in lowered:
        return "lower `time_limit_hours` in the cluster file; `sinfo` shows the partition's limit"
    return None


def states(job_ids: Iterable[int]) -> dict[int, JobState]:
    """States of jobs, from squeue and, for those it has forgotten, from accounting where there is one.

    Jobs that nobody knows any more are left out. The tasks of an array come together: the first live one,
    else the first that did not complete, else any.

    Raises:
        EnvironmentError_: squeue failed, so that it is not known which jobs wait or run.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    listing = ",".join(map(str, wanted))
    rows: dict[int, list[JobState]] = {}
    answer = _call(["squeue", "-h", "-r", "-t", "all", "-o", _FORMAT, f"--jobs={listing}"])
    # squeue fails over a number it has forgotten when that is the only one asked for.
    if answer.returncode != 0 and "invalid job id" not in answer.stderr.lower():
        raise _failed("squeue", answer)
    for line in answer.stdout.splitlines():
        fields = line.split("\t")
        if len(fields) == 6 and (number := re.match(r"\d+", fields[0])):
            reason = "" if fields[2] in ("None", "") else fields[2]
            state = JobState(fields[1], reason, fields[3], fields[4], fields[5])
            rows.setdefault(int(number[0]), []).append(state)
    forgotten = [number for number in wanted if number not in rows]
    if forgotten and shutil.which("sacct"):
        listing = ",".join(map(str, forgotten))
        columns = "JobID,State,Elapsed,Timelimit,NodeList"
        for line in _call(["sacct", "-n", "-X", "-P", "-j", listing, "-o", columns]).stdout.splitlines():
            fields = line.split("|")
            if len(fields) == 5 and (number := re.match(r"\d+", fields[0])):
                state = JobState(fields[1].split()[0], "", fields[2], fields[3], fields[4])
                rows.setdefault(int(number[0]), []).append(state)
    return {number: _together(found) for number, found in rows.items()}


def _together(found: list[JobState]) -> JobState:
    live = [state for state in found if state.live]
    failed = [state for state in found if state.state != "COMPLETED"]
    running = [state for state in live if state.state == "RUNNING"]
    chosen = (running or live or failed or found)[0]
    if len(found) == 1:
        return chosen
    counts = Counter(state.state for state in found)
    tasks = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return replace(chosen, reason=f"{len(found)} tasks: {tasks}")


def cancel(job_ids: Sequence[int]) -> None:
    """Cancel jobs; those that have ended already are no error.

    Raises:
        EnvironmentError_: scancel failed.
    """
    if not job_ids:
        return
    answer = _call(["scancel", *map(str, job_ids)])
    ended = ("invalid job id", "already completing or completed")
    lines = answer.stderr.lower().splitlines()
    if answer.returncode != 0 and not all(any(words in line for words in ended) for line in lines):
        raise _failed("scancel", answer)


def _failed(command: str, answer: subprocess.CompletedProcess[str]) -> EnvironmentError_:
    return EnvironmentError_(
        f"{command} failed", got=_messages(answer.stderr) or f"exit status {answer.returncode}",
        fix="try again when `scontrol ping` says that slurmctld is up",
    )  # fmt: skip


def signal_batch(job_id: int, name: str) -> None:
    """Send a signal to the batch script of a running job (and to nothing else)."""
    _call(["scancel", f"--signal={name}", "--batch", str(job_id)])
