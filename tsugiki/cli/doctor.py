"""``tsugiki doctor``: what this machine has."""

from __future__ import annotations

import json

import typer

from tsugiki.cli.options import JsonOption


def doctor(as_json: JsonOption = False) -> None:
    """Say which accelerator backend is active, what is missing and how to get it."""
    from tsugiki.experiment.doctor import examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([check.__dict__ for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{check.state:<8}{check.name:<22}{check.detail}")
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)
