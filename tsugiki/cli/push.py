"""``tsugiki push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli import hub
from tsugiki.cli.options import say


def push(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    repo: Annotated[str, typer.Option("--repo", metavar="OWNER/NAME", help="Repository on the hub.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the card, list the files, and send nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Of a repository that is made.")] = False,
    message: Annotated[str, typer.Option("--message", help="Of the commit.")] = "Upload model",
) -> None:
    """Send the export to the Hugging Face hub (or HF_ENDPOINT) in one commit, with its whole card and provenance.

    The token is that of `hf auth login` or HF_TOKEN. The same command goes on after an interruption.
    """
    hub.go_online()
    from tsugiki.push import CARD_NAME
    from tsugiki.push import prepare as prepared
    from tsugiki.push import push as send

    upload = prepared(run_dir, repo)
    for line in upload.lines():
        say(line)
    say(f"card: {upload.files[CARD_NAME]}")
    if dry_run:
        say(f"nothing sent to {repo}")
        return
    say(f"sent: {send(upload, private=private, message=message).url}")
