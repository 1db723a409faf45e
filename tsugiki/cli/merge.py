"""``tsugiki merge``: a model out of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.convert import OverwriteOption


def merge(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML: method, models, base; see docs/chat.md.")
    ],
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR")],
    overwrite: OverwriteOption = False,
) -> None:
    """Merge models of one architecture: chat vector, linear, task arithmetic, TIES, DARE."""
    from tsugiki.tools import merge_checkpoints

    typer.echo(json.dumps(merge_checkpoints(recipe, hf_dir, overwrite=overwrite), indent=2))
