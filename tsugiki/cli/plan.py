"""``tsugiki plan``: what an experiment will need."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tsugiki.cli.options import ConfigArgument, JsonOption, SetOption, complete_cluster, complete_gpu, load


def plan(
    config: ConfigArgument,
    overrides: SetOption = None,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            help="What to plan for: a100-40gb, a100-80gb, h100, h200, b200, l40s.",
            autocompletion=complete_gpu,
        ),
    ] = "h100",
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=1, help="GPUs in all; default: train.parallel.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", metavar="N", min=1, help="Default: 8.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME|FILE",
            help="Take nodes and GPUs per node of the training from a cluster file.",
            autocompletion=complete_cluster,
        ),
    ] = None,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.01, max=1.0, help="Share of the GPU's peak that training reaches.")
    ] = 0.4,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="AMOUNT", min=0.0, help="Of a GPU-hour, in any currency."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Parameters, GPU memory per pipeline stage, tokens, steps, hours, storage; starts nothing."""
    if cluster is not None:
        from tsugiki.slurm.config import load_cluster, split_overrides

        overrides, of_cluster = split_overrides(overrides or ())
        wanted = load_cluster(cluster, of_cluster)[0].resources("train")
        gpus_per_node = gpus_per_node or wanted.gpus_per_node or None
        gpus = gpus or wanted.nodes * wanted.gpus_per_node or None
    experiment = load(config, overrides, any_layout=True)
    made = experiment.plan(gpu, gpus, gpus_per_node or 8, mfu)
    cost = None if price is None else made.work.gpu_hours * price
    if as_json:
        typer.echo(json.dumps({**made.to_json(), **({} if cost is None else {"cost": cost})}, indent=2))
        return
    typer.echo(made.to_text())
    if cost is not None:
        typer.echo(f"  cost         {cost:,.2f} at {price:g} a GPU-hour")
