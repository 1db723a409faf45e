"""``tsugiki provenance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.options import say


def provenance(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write; default: RUN_DIR/provenance."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="FILE.json",
            help="Write nothing; compare the run with a provenance written before.",
        ),
    ] = None,
) -> None:
    """Write what went into a model: sources, licences, hashes, versions, seeds, commit (CycloneDX 1.5, and a page).

    With --against the exit status is 1 when a stage's results are not those recorded.
    """
    from tsugiki import provenance as written

    if against is None:
        say(f"provenance: {written.write_provenance(run_dir, out) / written.BOM_NAME}")
        return
    differing = written.differences(run_dir, against)
    say(f"other results: {', '.join(differing)}" if differing else "the same results in every stage")
    if differing:
        raise typer.Exit(1)
