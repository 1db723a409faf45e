"""``tsugiki verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.options import JsonOption


def verify(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")], as_json: JsonOption = False) -> None:
    """Compare every file of finished stages and every checkpoint with its recorded sha256.

    Exit status 1 when a file is damaged or missing. Nothing is changed: move a damaged stage away and run the
    experiment again.
    """
    from tsugiki.experiment.run.verify import verify_run

    found = verify_run(run_dir)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else found.to_text())
    if not found.intact:
        raise typer.Exit(1)
