"""``tsugiki schema``: what editors check YAML files with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def _complete_kind(incomplete: str) -> Iterator[str]:
    from tsugiki.schema import KINDS

    return (kind for kind in KINDS if kind.startswith(incomplete))


def schema(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="experiment, cluster, filters or study.", autocompletion=_complete_kind
        ),
    ] = "experiment",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there.")] = None,
) -> None:
    """Print the JSON Schema of a kind of YAML file, for editors."""
    from tsugiki.schema import schema_text

    text = schema_text(kind)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
