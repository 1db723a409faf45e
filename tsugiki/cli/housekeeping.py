"""``tsugiki runs`` and ``tsugiki clean``: what lies on the disk, and what of it can go."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsugiki.cli.options import JsonOption, say

if TYPE_CHECKING:
    from tsugiki.experiment.run.housekeeping import Kind


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List runs with their states and sizes."""
    from tsugiki.experiment.pages.formats import size
    from tsugiki.experiment.run.housekeeping import find_runs, measure

    found = [measure(run) for run in find_runs(folder)]
    if as_json:
        typer.echo(json.dumps([{**asdict(run), "directory": str(run.directory)} for run in found], indent=2))
        return
    for run in found:
        shared = f", {size(run.shared_bytes)} of it in other runs too" if run.shared_bytes else ""
        stages = f"{run.complete}/{run.stages}"
        typer.echo(f"{run.state:<10}{stages:>6}  {size(run.bytes):>10}  {run.directory}{shared}")
    if not found:
        typer.echo(f"no runs below {folder}")


def clean(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN|FOLDER...", help="Runs, or folders of runs.")],
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also work on stages that are not complete: it begins anew.")
    ] = False,
    remakeable: Annotated[
        bool, typer.Option("--remakeable", help="Also results that can be made again without training.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; remove nothing.")] = False,
) -> None:
    """Remove what is superseded or left over; shows sizes and asks first.

    Only folders that carry the mark of a stage are touched, and no run that a process or a Slurm job works in.
    """
    from tsugiki.experiment.pages.formats import size
    from tsugiki.experiment.run.housekeeping import find_runs, leftovers, remove

    kinds: list[Kind] = ["superseded", "partial"]
    kinds += ["unfinished"] if unfinished else []
    kinds += ["remakeable"] if remakeable else []
    runs_found = dict.fromkeys(run for folder in folders for run in find_runs(folder))
    found = {run: items for run in runs_found if (items := leftovers(run, kinds)) and not _has_jobs(run)}
    total = 0
    for items in found.values():
        for item in items:
            typer.echo(f"{item.kind:<12}{size(item.bytes):>10}  {item.path}")
            total += item.bytes
    if not found:
        typer.echo("nothing to remove")
        return
    typer.echo(f"frees {size(total)}")
    if dry_run or not (yes or typer.confirm("Remove them?")):
        return
    for run, items in found.items():
        remove(run, items)
        say(f"{run}: {len(items)} removed")


def _has_jobs(run_dir: Path) -> bool:
    """Whether Slurm jobs of a run wait or run; said when they do."""
    from tsugiki.slurm import client
    from tsugiki.slurm.jobs import JobRecord

    record = JobRecord.load(run_dir)
    if not record.jobs or not client.available():
        return False
    states = client.states(job.job_id for job in record.jobs)
    live = [str(number) for number, state in states.items() if state.live]
    if live:
        typer.echo(f"left alone: {run_dir}, whose jobs {', '.join(live)} wait or run")
    return bool(live)
