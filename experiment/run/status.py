"""What a run directory says about its stages."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeGuard

from tsugiki.experiment.config.load import read_yaml
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage_names import OPTIONAL, STAGE_NAMES

_LONGEST_SECONDS = 1e10
"""Of the time left, 300 years: what a speed near zero gives would not fit into a span of time."""


@dataclass(frozen=True)
class StageStatus:
    """State of one stage: complete, partial, damaged or absent."""

    name: str
    state: str
    detail: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class JobStatus:
    """State of one batch job of the run.

    Attributes:
        job_id: number of the job.
        stage: stage it runs.
        kind: ``stage``, or ``array`` for a job array.
        state: the scheduler's state, FAILED or COMPLETED by the job's own last words, or UNKNOWN.
        restarts: times it was requeued.
        elapsed: time since its last start, as the scheduler writes it.
        nodes: where it runs or ran.
        detail: what it waits for, or why it ended.
    """

    job_id: int
    stage: str
    kind: str
    state: str
    restarts: int = 0
    elapsed: str = ""
    nodes: str = ""
    detail: str = ""


@dataclass(frozen=True)
class RunStatus:
    """State of a run directory."""

    run_dir: str
    stages: list[StageStatus]
    training: dict[str, Any] | None
    jobs: list[JobStatus] = field(default_factory=list)

    def with_jobs(self, jobs: list[JobStatus], live: Collection[int]) -> RunStatus:
        """The same state with the jobs that were submitted.

        Args:
            jobs: their states.
            live: numbers of those that still wait or run.
        """
        stages = [_with_job(stage, jobs, live) for stage in self.stages]
        return replace(self, stages=stages, jobs=jobs)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self)

    def to_text(self) -> str:
        """Lines for the console."""
        lines = [self.run_dir]
        for stage in self.stages:
            took = f"{stage.seconds:.1f} s" if stage.seconds is not None else ""
            lines.append(f"  {stage.name:<10}{stage.state:<10}{took:>10}  {stage.detail}".rstrip())
        if self.training:
            lines.append("  training  " + _training_line(self.training))
        if self.jobs:
            lines.append("  jobs")
        for job in self.jobs:
            restarts = f"{job.restarts} restarts" if job.restarts != 1 else "1 restart"
            parts = [job.elapsed, job.nodes, restarts if job.restarts else "", job.detail]
            text = "  ".join(part for part in parts if part)
            lines.append(f"    {job.job_id:<9}{job.stage:<10}{job.state:<11}{text}".rstrip())
        return "\n".join(lines)


def _with_job(stage: StageStatus, jobs: list[JobStatus], live: Collection[int]) -> StageStatus:
    mine = [job for job in jobs if job.stage == stage.name]
    if stage.state in ("complete", "damaged") or not mine:
        return stage
    for job in mine:
        if job.job_id in live:
            return replace(stage, detail=f"job {job.job_id} {job.state}")
    return replace(stage, detail="interrupted") if stage.state == "partial" else stage


def read_status(run_dir: Path) -> RunStatus:
    """Read the state of every stage and the last training metrics.

    Raises:
        ConfigError: there is no run here.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(
            "no run here",
            where=run_dir,
            expected="a run directory with config.yaml, e.g. runs/quickstart",
        )
    stages = [_stage(run_dir, name) for name in STAGE_NAMES if name not in OPTIONAL or _HAS[name](run_dir)]
    training = last_metrics(run_dir)
    if training and next(stage.state for stage in stages if stage.name == "train") == "complete":
        training.pop("eta_seconds", None)
    return RunStatus(str(run_dir), stages, training)


def _has_base(run_dir: Path) -> bool:
    """Whether the experiment makes its base itself."""
    try:
        base = read_yaml(run_dir / "config.yaml").values["base"]
        return base.get("scratch") is not None
    except (ConfigError, LookupError, TypeError, AttributeError):
        return (run_dir / "base").is_dir()  # a damaged configuration: what is there tells


def _has_reference(run_dir: Path) -> bool:
    """Whether the experiment tunes by preferences that it compares with a reference."""
    try:
        objective = read_yaml(run_dir / "config.yaml").values["train"].get("objective", "next_token")
        return objective not in ("next_token", "simpo")
    except (ConfigError, LookupError, TypeError, AttributeError):
        return (run_dir / "reference").is_dir()


_HAS = {"base": _has_base, "reference": _has_reference}


def _stage(run_dir: Path, name: str) -> StageStatus:
    directory = run_dir / name
    manifest = Manifest.load(directory)
    if manifest is not None:
        damage = manifest.damage(directory)
        if damage:
            return StageStatus(name, "damaged", damage)
        return StageStatus(name, "complete", seconds=manifest.seconds)
    if (run_dir / f"{name}.partial").is_dir():
        return StageStatus(name, "partial", "running or interrupted")
    return StageStatus(name, "absent")


def metrics_file(run_dir: Path) -> Path | None:
    """``metrics.jsonl`` of the finished or running training, None before it started."""
    for directory in ("train.partial", "train"):
        path = run_dir / directory / "metrics.jsonl"
        if path.is_file():
            return path
    return None


def last_metrics(run_dir: Path) -> dict[str, Any] | None:
    """The newest training record of ``metrics.jsonl``; a line cut short by a crash is left out."""
    path = metrics_file(run_dir)
    if path is None:
        return None
    last: dict[str, Any] | None = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and "train/loss" in record:
                last = record
    if last is not None and (seconds := _seconds_left(run_dir, last)) is not None:
        last["eta_seconds"] = seconds
    return last


def _seconds_left(run_dir: Path, record: dict[str, Any]) -> float | None:
    """Tokens still to train over the present speed; None where either is unknown."""
    rate, consumed = record.get("throughput/tokens_per_second"), record.get("consumed_tokens")
    try:
        total = json.loads((run_dir / "tokens" / "mixture.json").read_text(encoding="utf-8"))["total_tokens"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    if not (_is_finite(total) and _is_finite(consumed) and _is_finite(rate)) or rate <= 0:
        return None
    return min(max(0.0, (total - consumed) / rate), _LONGEST_SECONDS)


def _is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value of a file is a number to count with."""
    return isinstance(value, (int, float)) and abs(value) < 2**63


def _training_line(record: dict[str, Any]) -> str:
    parts = [f"step {record.get('step')}"]
    for key, label, form in (
        ("train/loss", "loss", "{:.4f}"),
        ("train/bits_per_byte", "bits/byte", "{:.4f}"),
        ("throughput/tokens_per_second", "tokens/s", "{:,.0f}"),
    ):
        if isinstance(record.get(key), float) or _is_finite(record.get(key)):
            parts.append(f"{label} {form.format(record[key])}")
    if isinstance(left := record.get("eta_seconds"), (int, float)):
        parts.append(f"{timedelta(seconds=round(left))} left")
    return "  ".join(parts)
