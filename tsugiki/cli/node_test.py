"""``tsugiki node-test``: is each node of a job as fast as the others?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def _share(name: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}", min=0.0, max=1.0, help=f"Least share of the nodes' median: {text}. 0 = only shown."
    )
    return option


def node_test(
    compute: Annotated[float, _share("compute", "matrix products of the slowest GPU")] = 0.8,
    memory: Annotated[float, _share("memory", "copies in its memory")] = 0.8,
    network: Annotated[float, _share("network", "all-reduce with the better of two neighbours")] = 0.5,
    disk: Annotated[float, _share("disk", "writing to the run's file system")] = 0.1,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Empty folder that all nodes see; default: in the run of the job."),
    ] = None,
) -> None:
    """Measure this node, and compare it with the others of the Slurm step that runs this, a process on each.

    Prints `BAD NODE: why` for a node that is broken or too slow, which keeps it out of a training (docs/slurm.md).
    """
    from tsugiki.pretrain.runtime.node_test import Task, examine_node

    shares = {"compute": compute, "memory": memory, "network": network, "disk": disk}
    run_dir = os.environ.get("TSUGIKI_RUN_DIR")
    if folder is None and run_dir is not None:
        folder = Path(run_dir, "slurm", "node-test", os.environ.get("TSUGIKI_TOKEN", "0"))
    with tempfile.TemporaryDirectory() as alone:
        task = Task.from_environment(folder or Path(alone))
        for line in examine_node(task, shares):
            typer.echo(line)
