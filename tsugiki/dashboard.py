"""One page about runs that go on, written again and again; it is read from files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.files import atomic_file
from tsugiki.experiment.pages.charts import Chart, Line, thin
from tsugiki.experiment.pages.formats import duration
from tsugiki.experiment.pages.page import Missing, Page, Section, render
from tsugiki.experiment.pages.tables import Cell, Number, Styled, Table, Verdict, text_columns
from tsugiki.experiment.run.housekeeping import find_runs
from tsugiki.experiment.run.status import RunStatus
from tsugiki.live import is_over, metrics_of, series
from tsugiki.slurm.jobs import status as read_status

TEMPLATE = Path(__file__).with_name("dashboard.html.jinja")
_COLOURS = 8
_GOOD = {"complete": True, "damaged": False}


@dataclass(frozen=True)
class Curves:
    """Charts of one metric over the runs.

    Attributes:
        legend: colours of the runs.
        charts: a metric each.
    """

    legend: Sequence[tuple[str, str]]
    charts: Sequence[Chart]


def write_dashboard(folders: Sequence[Path], out: Path, refresh_seconds: int | None) -> bool:
    """Write the page; whether all runs are over.

    Args:
        folders: runs, or folders of runs.
        out: file to write.
        refresh_seconds: how often a browser loads it again; None never.

    Raises:
        ConfigError: a folder is not there, or holds no run.
    """
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))
    if not runs:
        raise ConfigError("no runs here", where=", ".join(map(str, folders)))
    found = {str(run): read_status(run) for run in runs}
    with atomic_file(out) as file:
        file.write(render(_page(found, refresh_seconds), TEMPLATE))
    return all(is_over(status) for status in found.values())


def _page(found: dict[str, RunStatus], refresh_seconds: int | None) -> Page:
    over = sum(is_over(status) for status in found.values())
    return Page(
        "Runs",
        f"{over} of {len(found)} complete",
        [
            Section("runs", "Runs", _runs(found)),
            Section("curves", "Curves", _curves(list(found))),
            Section("jobs", "Slurm jobs", _jobs(found)),
        ],
        refresh_seconds=refresh_seconds,
    )


def _runs(found: dict[str, RunStatus]) -> Table:
    rows: list[list[Cell]] = []
    for name, status in found.items():
        at = next((stage for stage in status.stages if stage.state != "complete"), status.stages[-1])
        record = status.training or {}
        left = record.get("eta_seconds")
        speed = record.get("throughput/tokens_per_second")
        rows.append(
            [
                Styled(name, "code"),
                Verdict(_GOOD.get(at.state), f"{at.name}: {at.state}", at.detail),
                record.get("step") if isinstance(record.get("step"), int) else None,
                Number(record["train/loss"], ".4f") if isinstance(record.get("train/loss"), float) else None,
                Number(speed, ",.0f") if isinstance(speed, (int, float)) else None,
                duration(left) if isinstance(left, (int, float)) else None,
            ]
        )
    return Table("Runs", [*text_columns("run", "stage"), "step", "loss", "tokens/s", "time left"], rows)


def _curves(names: Sequence[str]) -> Curves | Missing:
    measured = {name: series(metrics_of(Path(name))) for name in names}
    shown = [name for name in names if measured[name]]
    colours = {name: str(at % _COLOURS + 1) for at, name in enumerate(shown)}
    charts = []
    for metric in dict.fromkeys(metric for name in shown for metric in measured[name]):
        lines = [
            Line(name, thin(measured[name][metric]), colours[name])
            for name in shown
            if len(measured[name].get(metric, ())) > 1
        ]
        if lines:
            ends = "; ".join(f"{line.name} at {line.points[-1][1]:.4g}" for line in lines)
            charts.append(
                Chart(f"{metric} by step: {ends}", lines, "step", metric, metric, width=330, height=190)
            )
    return (
        Curves(list(colours.items()), charts) if charts else Missing("No training has logged anything yet.")
    )


def _jobs(found: dict[str, RunStatus]) -> Table | None:
    rows: list[list[Cell]] = [
        [
            Styled(name, "code"),
            job.job_id,
            job.stage,
            job.state,
            job.elapsed,
            job.nodes,
            job.restarts,
            Styled(job.detail),
        ]
        for name, status in found.items()
        for job in status.jobs
    ]
    columns = [*text_columns("run"), "job", *text_columns("stage", "state", "elapsed", "nodes"), "restarts"]
    return Table("Slurm jobs", [*columns, *text_columns("why")], rows) if rows else None
