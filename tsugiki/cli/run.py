"""``tsugiki run``, and a command for each stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tsugiki.cli.hub import go_online_for
from tsugiki.cli.options import (
    ConfigArgument,
    DryRunOption,
    ForceOption,
    SetOption,
    complete_experiment,
    complete_stage,
    load,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tsugiki.experiment.run.graph import Stage
    from tsugiki.pipeline import Experiment


def run_stages(
    config: Path,
    overrides: list[str] | None,
    *,
    start: str | None = None,
    until: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> None:
    """Run a range of stages, or say what would be done."""
    experiment = load(config, overrides)
    graph = experiment.graph(announce=say)
    selected = graph.select(start, until)
    if dry_run:
        typer.echo(f"{experiment.config.name}: {config} is valid; run directory {experiment.run_dir}")
        for decision in graph.preview(selected, force=force):
            typer.echo(f"  {decision.stage:<10}{decision.action:<8}{decision.reason}")
        for line in _missing(experiment, selected):
            typer.echo(f"  {line}")
        return
    experiment.check_base(selected)
    go_online_for(path for source in experiment.config.corpus.sources for path in source.paths)
    for line in _missing(experiment, selected, "evaluate"):  # hours from now, not at once
        typer.secho(f"warning: {line}", fg=typer.colors.YELLOW, err=True)
    experiment.run(start, until, force=force, announce=say)
    report = experiment.run_dir / "report" / "index.html"
    if until is None and report.is_file():
        say(f"report: {report}")


def _missing(experiment: Experiment, selected: Sequence[Stage], section: str = "") -> list[str]:
    """Inputs that these stages will look for in vain, a line for each place of the configuration."""
    places: dict[str, list[str]] = {}
    for location, path in experiment.missing_inputs(selected):
        if location[0] == section or not section:
            places.setdefault(".".join(map(str, location)), []).append(path)
    return [f"not on this machine: {place} = {', '.join(paths)}" for place, paths in places.items()]


def run(
    config: ConfigArgument,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="First stage; earlier ones are taken as they are.",
            autocompletion=complete_stage,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="STAGE", help="Last stage.", autocompletion=complete_stage),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    scale: Annotated[
        Literal["full", "tiny"],
        typer.Option("--scale", help="tiny: the same experiment in miniature, on 4 CPU processes."),
    ] = "full",
) -> None:
    """Run an experiment: all stages, or a range of them.

    Stages: corpus, base (only for base.scratch), tokenizer, tokens, graft, reference (only for pairs), train, export,
    evaluate, report.
    """
    if scale == "tiny":
        from tsugiki.pretrain.planning.tiny import write_tiny

        config, overrides = write_tiny(config, overrides or ()), None
    run_stages(config, overrides, start=start, until=until, dry_run=dry_run, force=force)


def stage_command(name: str, summary: str) -> Callable[..., None]:
    """A command that runs one stage."""

    def command(
        config: ConfigArgument,
        overrides: SetOption = None,
        dry_run: DryRunOption = False,
        force: ForceOption = False,
    ) -> None:
        run_stages(config, overrides, start=name, until=name, dry_run=dry_run, force=force)

    command.__doc__ = f"{summary} Earlier stages must be complete."
    return command


def evaluate(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="YAML file of the experiment, or the name of a shipped one.",
            autocompletion=complete_experiment,
        ),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    list_benchmarks: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Say of each benchmark (of CONFIG, or all) what file it wants, where that comes from, its licence, "
            "whether it is here, and how the result differs from the published one; measure nothing.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FOLDER", help="With --list: the folder of the benchmarks' files."),
    ] = None,
) -> None:
    """Bits per byte, samples and benchmarks, base against result. Earlier stages must be complete."""
    if list_benchmarks:
        from tsugiki.evaluation.benchmarks.listing import every_benchmark, listing

        harness = every_benchmark(data)
        if config is not None:
            found = load(config, overrides).config.evaluate.harness
            harness = found or harness
            if data is not None:
                harness = harness.model_copy(update={"data": data})
        for line in listing(harness):
            typer.echo(line)
        return
    if config is None:
        raise typer.BadParameter("CONFIG is missing; without it there is only --list", param_hint="CONFIG")
    run_stages(config, overrides, start="evaluate", until="evaluate", dry_run=dry_run, force=force)


STAGE_COMMANDS = {
    "corpus": "Filter, deduplicate and split the sources.",
    "tokens": "Encode the corpus and plan the mixture.",
    "graft": "Write the base model with the extended vocabulary as a Megatron checkpoint.",
    "reference": "Preference tuning: read the pairs with the first weights.",
    "train": "Continue pretraining.",
    "export": "Write the trained model as a Hugging Face directory and verify it.",
}
"""Stage -> what its command does. The vocabulary's is `tsugiki tokenizer extend`."""
