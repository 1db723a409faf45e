"""``tsugiki compare``: runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.options import JsonOption


def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Two or more finished runs.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page and its data go.")] = Path(
        "runs/compare"
    ),
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side in bits per byte: extended against not extended vocabulary, for instance."""
    from tsugiki import tools

    comparison = tools.compare(run_dirs, out)
    typer.echo(json.dumps(comparison.values, indent=2) if as_json else "\n".join(comparison.summary))
