"""``tsugiki status --watch`` and ``tsugiki dashboard``: runs while they go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.options import say

_CLEAR = "\x1b[H\x1b[2J"


def watch(folder: Path, every_seconds: float) -> None:
    """Show a run or a study until it is complete; on a terminal in place, else one below the other."""
    import sys

    from tsugiki.live import screen

    while True:
        text, over = screen(folder)
        say((_CLEAR if sys.stdout.isatty() else "") + text)
        if over:
            return
        time.sleep(every_seconds)


def dashboard(
    folders: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Runs, or folders of runs.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path(
        "runs/dashboard.html"
    ),
    every_seconds: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=1.0, help="How often it is written.")
    ] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Write it once and end.")] = False,
) -> None:
    """Write one page about runs again and again until all are complete; the browser loads it again by itself."""
    from tsugiki.dashboard import write_dashboard

    say(f"page: {out}")
    while not write_dashboard(folders, out, None if once else max(1, round(every_seconds))) and not once:
        time.sleep(every_seconds)
    if not once:
        write_dashboard(folders, out, None)  # it does not change any more
