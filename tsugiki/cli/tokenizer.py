"""``tsugiki tokenizer``: the vocabulary extension, and a comparison of any tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.options import ConfigArgument, DryRunOption, ForceOption, SetOption, pairs, say
from tsugiki.cli.run import run_stages

app = typer.Typer(no_args_is_help=True, help="Extend a vocabulary, or compare tokenizers.")


@app.command("extend")
def tokenizer_extend(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
) -> None:
    """Train, select, merge and prove the vocabulary extension. The corpus stage must be complete."""
    run_stages(config, overrides, start="tokenizer", until="tokenizer", dry_run=dry_run, force=force)


@app.command("report")
def tokenizer_report(
    tokenizer: Annotated[
        list[str],
        typer.Option(
            "--tokenizer",
            metavar="NAME=PATH",
            help="Hugging Face directory, tokenizer.json or SentencePiece .model; repeatable.",
        ),
    ],
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="LANG=FILE",
            help="Text to measure on: .txt or .jsonl, also .gz and .zst; repeatable.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where report.json, .csv, .md and .html go.")
    ],
    parallel: Annotated[
        list[str] | None,
        typer.Option(
            "--parallel", metavar="LANG=FILE", help="Aligned lines, en among them, for parity; repeatable."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="PATH", help="config.json of the model whose cost is predicted."),
    ] = None,
    limit_bytes: Annotated[
        int | None, typer.Option("--limit-bytes", metavar="N", help="Most bytes of each text.")
    ] = None,
) -> None:
    """Measure any tokenizers on any texts: compression, fertility, parity, byte fallback, with plots."""
    tokenizers = {name: Path(path) for name, path in pairs("--tokenizer", tokenizer)}
    texts: dict[str, list[Path]] = {}
    for language, path in pairs("--text", text):
        texts.setdefault(language, []).append(Path(path))
    aligned = {language: Path(path) for language, path in pairs("--parallel", parallel or [])}
    from tsugiki import tools

    tools.tokenizer_report(
        tokenizers, texts, out, parallel=aligned or None, model=model, limit_bytes=limit_bytes
    )
    say(f"report: {out / 'report.html'}")
