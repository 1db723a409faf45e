"""``tsugiki sweep``: a study, many runs of one experiment that differ in a few values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.options import DryRunOption, SetOption, complete_cluster, complete_experiment, say
from tsugiki.experiment.errors import TsugikiError


def sweep(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY|CONFIG",
            help="YAML file of a study; or an experiment, with --set a=1,2,4 for what its trials differ in.",
            autocompletion=complete_experiment,
        ),
    ],
    overrides: SetOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--submit",
            metavar="NAME|FILE",
            help="Submit the trials to Slurm instead: a file of configs/clusters by name, or any by path.",
            autocompletion=complete_cluster,
        ),
    ] = None,
    page_only: Annotated[
        bool, typer.Option("--page", help="Run nothing: make the page of the trials that are done.")
    ] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run a study: the same experiment with several values of some keys.

    What trials have in common is made once and hard-linked. A study that was stopped or killed goes on with the
    same command. With a study's file, `--set` changes the study; with an experiment it gives each key its values:
    `--set train.optimizer.learning_rate=1e-4,3e-4`.
    """
    from tsugiki.pipeline import load_experiment
    from tsugiki.slurm.config import split_overrides
    from tsugiki.study.config import is_study, load_study, study_of_options
    from tsugiki.study.preview import preview
    from tsugiki.study.trials import make_study

    ours, of_cluster = split_overrides(overrides or [])
    read = load_study if is_study(config) else study_of_options
    study = make_study(read(config, ours), load_experiment)
    if dry_run:
        for line in preview(study):
            typer.echo(line)
        return
    if cluster is not None:
        from tsugiki.study.cluster import submit_to

        submit_to(study, cluster, of_cluster, announce=say)
        return
    from tsugiki.study.local import LocalRun
    from tsugiki.study.page import FOLDER, write_page
    from tsugiki.study.prediction import findings, predict
    from tsugiki.study.results import read_results

    states = {} if page_only else LocalRun(study, say).run()
    if page_only or any(state.state == "done" for state in states.values()):
        results = read_results(study, {name: state.detail for name, state in states.items()})
        say(f"best: {results.best or 'no trial keeps the bounds'}")
        found = predict(study, results)
        for line in findings(found, refused=False):
            say(line)
        say(f"page: {write_page(results, study.directory / FOLDER, found)[0]}")
    failed = [f"{name}: {state.detail}" for name, state in states.items() if state.state != "done"]
    if failed:
        raise TsugikiError(
            f"{len(failed)} of {len(states)} trials are not done", where=study.directory, got="\n".join(failed),
            fix="the same command tries them again; trials that are done are kept",
        )  # fmt: skip
