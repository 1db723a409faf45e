"""``tsugiki tokenizer``: the vocabulary extension, and a comparison of any tokenizers."""

from __future__ import annotations

import sys
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


@app.command("show")
def tokenizer_show(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to cut; - reads it from a pipe.")
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            "--tokenizer",
            metavar="NAME=PATH",
            help="Hugging Face directory, tokenizer.json or SentencePiece .model; repeatable.",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--page", metavar="FILE.html", help="Write a page with a text box that needs no server."
        ),
    ] = None,
    sample: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="LANG=FILE",
            help="Text of a language, for the page: sample and costs; repeatable.",
        ),
    ] = None,
) -> None:
    """Show how tokenizers cut a text, side by side: coloured in the terminal, or on a page to try texts on."""
    import os

    from tsugiki.experiment.errors import ConfigError
    from tsugiki.experiment.text.tokenizer_files import open_tokenizer
    from tsugiki.tokenizer.measure.efficiency import read_lines
    from tsugiki.tokenizer.playground import page as playground
    from tsugiki.tokenizer.playground.pieces import cut_text, require_names, terminal_lines

    named = pairs("--tokenizer", tokenizer or [])
    paths = {name: Path(path) for name, path in named}
    require_names(paths, len(named))
    if text is None and page is None:
        raise ConfigError("nothing to show", expected="TEXT, or --page FILE.html")
    opened = {name: open_tokenizer(path, special_tokens_in_text=False) for name, path in paths.items()}
    if text is not None:
        shown = typer.get_text_stream("stdin").read() if text == "-" else text
        cuts = [cut_text(name, item, shown) for name, item in opened.items()]
        for line in terminal_lines(cuts, colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR")):
            say(line)
    if page is not None:
        samples = {
            language: "\n".join(read_lines([Path(path)], 200_000))
            for language, path in pairs("--text", sample or [])
        }
        playground.write_page(page, opened, samples, "" if text in (None, "-") else str(text))
        say(f"page: {page}")
