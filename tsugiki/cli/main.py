"""Command line of Tsugiki: graft a new language onto an existing LLM."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tsugiki.cli import (
    cluster,
    compare,
    convert,
    doctor,
    housekeeping,
    hub,
    live,
    merge,
    node_test,
    plan,
    provenance,
    push,
    run,
    schema,
    sweep,
    tokenizer,
    verify,
)
from tsugiki.experiment.errors import Interrupted, TsugikiError, os_error

app = typer.Typer(
    name="tsugiki",
    help="""Graft a new language onto an existing LLM.

    One YAML file describes an experiment; `tsugiki run CONFIG` takes it from raw text to a Hugging Face
    model with an extended vocabulary and a report. Finished stages are skipped, interrupted ones go on.

    Start with: tsugiki run configs/quickstart.yaml""",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from tsugiki.version import describe_version

        typer.echo(f"tsugiki {describe_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show version, and commit in a checkout.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


app.command()(run.run)
for _name, _summary in run.STAGE_COMMANDS.items():
    app.command(_name)(run.stage_command(_name, _summary))
for _command in (
    run.evaluate, sweep.sweep, cluster.submit, cluster.cancel, cluster.status, verify.verify, plan.plan,
    compare.compare, doctor.doctor, node_test.node_test, schema.schema,
    provenance.provenance, push.push, housekeeping.runs, housekeeping.clean, live.dashboard, merge.merge,
):  # fmt: skip
    app.command()(_command)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(convert.app, name="convert")


def main() -> NoReturn:
    """Entry point: exit status 0 success, 1 the work failed, 2 the request was wrong, 75 asked to stop."""
    hub.go_offline()
    # Forked tokenizers must not warn into progress bars.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _stop)
    try:
        app(standalone_mode=True)
    except TsugikiError as error:
        sys.stdout.flush()
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        sys.stdout.flush()
        told = os_error(f"`tsugiki {' '.join(sys.argv[1:2])}`", Path.cwd(), error)
        typer.secho(f"error: {told}", fg=typer.colors.RED, err=True)
        sys.exit(told.exit_code)
    except KeyboardInterrupt:
        typer.secho("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except SystemExit as ended:
        if ended.code == Interrupted.exit_code:
            typer.secho("asked to stop; run the same command again to go on", err=True)
        raise
    sys.exit(0)


def _stop(number: int, frame: Any) -> NoReturn:
    sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
