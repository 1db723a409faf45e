"""Weights & Biases: a run a stage, grouped by experiment; ``WANDB_MODE=offline`` keeps it on this machine.

wandb's own step only grows, while a line about a checkpoint comes after those of later steps: the step is a
metric of its own, which all curves are drawn over. Parameters and tags are the run's config. wandb sends from a
process of its own and does not say what has arrived, so which lines were handed over stands in a small file
beside the runs: after a kill (not after a stop) a line is never there twice, but lines that wandb's process had
not written yet are missing; offline it writes 32 KiB at a time. metrics.jsonl has them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.files import write_json_atomically
from tsugiki.experiment.tracking.tracker import TRACKERS, Point, RunRequest, RunStatus, Tracker


class WandbOptions(StrictModel):
    """``tracking.options.wandb``; what is not here is set by wandb's own variables (``WANDB_MODE``, …)."""

    entity: str | None = None
    """User or team; null is wandb's default."""


@TRACKERS.register("wandb")
class WandbTracker(Tracker):
    """One run of Weights & Biases."""

    Options = WandbOptions
    library = "wandb"
    extra = "wandb"

    def __init__(self, run: Any, state: Path) -> None:
        self._run, self._state = run, state
        self._seen: dict[str, Any] = {"logged": {}, "metrics": []}
        if state.is_file():
            self._seen = json.loads(state.read_text(encoding="utf-8"))

    @classmethod
    def open(cls, request: RunRequest) -> Self:
        """Open a run, or the one of that id again."""
        import wandb

        folder = request.run_dir.resolve().parent
        options: WandbOptions = request.options
        run_id = request.run_id or secrets.token_hex(8)
        run = wandb.init(
            project=request.experiment,
            entity=options.entity,
            dir=str(folder),
            id=run_id,
            resume="allow",
            name=request.name,
            group=request.parent_run_id or run_id,
            job_type="experiment" if request.parent_run_id is None else request.name,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return cls(run, folder / "wandb" / f"tsugiki-{run.id}.json")

    @property
    def run_id(self) -> str:
        """wandb's."""
        return str(self._run.id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Config of the run; keys it already has are left alone."""
        self._run.config.update({key: value for key, value in params.items() if key not in self._run.config})

    def send(self, points: Sequence[Point], logged: Mapping[str, int]) -> None:
        """Hand lines over to wandb's process."""
        self._seen = {
            "logged": dict(logged),
            "metrics": sorted({*self._seen["metrics"], *(key for point in points for key in point.metrics)}),
        }
        write_json_atomically(self._state, self._seen, indent=None)
        for point in points:
            self._run.log({**point.metrics, "step": point.step, "_timestamp": point.milliseconds / 1000})

    def read_logged(self) -> Mapping[str, int]:
        """From the file beside the runs."""
        logged: dict[str, int] = self._seen["logged"]
        return logged

    def metric_names(self) -> Collection[str]:
        """From the file beside the runs."""
        names: list[str] = self._seen["metrics"]
        return names

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file of the run."""
        depth = len(Path(folder).parts)
        below = path.parent.parts[len(path.parent.parts) - depth :] == Path(folder).parts
        self._run.save(str(path), base_path=str(path.parents[depth if below else 0]), policy="now")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Config of the run: wandb's tags have no values."""
        self._run.config.update(dict(tags), allow_val_change=True)

    def terminate(self, status: RunStatus) -> None:
        """Mark the run as ended; waits until wandb has sent everything."""
        self._run.config.update({"status": status}, allow_val_change=True)
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
