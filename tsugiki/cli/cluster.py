"""``tsugiki submit``, ``cancel``, ``status``: the experiment as Slurm jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.options import (
    ConfigArgument,
    DryRunOption,
    JsonOption,
    SetOption,
    complete_cluster,
    complete_stage,
    say,
)


def submit(
    config: ConfigArgument,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="NAME|FILE",
            help="A file of configs/clusters by name, or any file by path.",
            autocompletion=complete_cluster,
        ),
    ],
    overrides: SetOption = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="STAGE",
            help="Last stage; submit the rest later.",
            autocompletion=complete_stage,
        ),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Submit an experiment to Slurm: each stage a job that waits for the one before.

    `--set cluster.A.B=C` overrides the cluster file. `--dry-run` prints every sbatch script. Complete
    stages are skipped, and what waits or runs already is never submitted twice.
    """
    from tsugiki.slurm.submit import submit as submit_jobs

    submit_jobs(config, cluster, overrides or (), dry_run, announce=say, until=until)


def cancel(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    now: Annotated[bool, typer.Option("--now", help="Do not let a running training save first.")] = False,
) -> None:
    """Stop all Slurm jobs of a run; a running training saves a checkpoint first."""
    from tsugiki.slurm.jobs import cancel as cancel_jobs

    cancel_jobs(run_dir, wait_seconds=0.0 if now else 90.0, announce=say)


def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    as_json: JsonOption = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, with curves; also of a study's folder.")
    ] = False,
    every_seconds: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.1, help="With --watch: how often.")
    ] = 5.0,
) -> None:
    """Show the stages of a run, its Slurm jobs, the training step, loss, speed and time left."""
    if watching:
        from tsugiki.cli.live import watch

        watch(run_dir, every_seconds)
        return
    from tsugiki.slurm.jobs import status as read_status

    found = read_status(run_dir)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else found.to_text())
