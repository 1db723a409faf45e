"""``tsugiki convert``: checkpoints between Hugging Face and Megatron."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.experiment.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Hugging Face to Megatron and back, bit for bit.")

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output directory if it exists.")
]
IterationOption = Annotated[
    int | None, typer.Option("--iteration", metavar="N", help="Step of a training run; default: the last.")
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Threads.")]


@app.command("import")
def convert_import(
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR")],
    megatron_dir: Annotated[Path, typer.Argument(metavar="MEGATRON_DIR")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="DIR", help="Extended tokenizer whose pieces.tsv names the new rows."
        ),
    ] = None,
    init: Annotated[str, typer.Option("--init", help="How new rows start; see docs/graft.md.")] = "mean",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bf16, fp16 or fp32; default: as it is.")
    ] = None,
    trim_padding_rows: Annotated[
        bool, typer.Option("--trim-padding-rows", help="Drop rows behind the last id of the tokenizer.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random new rows.")] = 1234,
    workers: WorkersOption = 2,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a Hugging Face model as a Megatron distributed checkpoint that loads under any layout."""
    from tsugiki.tools import import_checkpoint

    report = import_checkpoint(
        hf_dir,
        megatron_dir,
        tokenizer_dir=tokenizer,
        workers=workers,
        seed=seed,
        overwrite=overwrite,
        init=init,
        dtype=dtype,
        trim_padding_rows=trim_padding_rows,
    )
    typer.echo(json.dumps(report, indent=2))


@app.command("export")
def convert_export(
    megatron_dir: Annotated[Path, typer.Argument(metavar="MEGATRON_DIR")],
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR")],
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="DIR", help="Tokenizer to put beside the weights.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", metavar="DIR", help="Base model: generation settings, chat template, licence."
        ),
    ] = None,
    iteration: IterationOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="bf16, fp16 or fp32; default: the base's.")
    ] = None,
    shard_bytes: Annotated[
        int, typer.Option("--shard-bytes", metavar="N", help="Largest safetensors file.")
    ] = 5_000_000_000,
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="Licence for the model card.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="NAME", help="Base model's name for the model card.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare weights and logits with Megatron afterwards.")] = True,
    workers: WorkersOption = 2,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a Megatron checkpoint of any layout as a Hugging Face directory, and verify it."""
    from tsugiki.tools import export_checkpoint

    report = export_checkpoint(
        megatron_dir,
        hf_dir,
        tokenizer_dir=tokenizer,
        base_dir=base,
        workers=workers,
        overwrite=overwrite,
        iteration=iteration,
        dtype=dtype,
        shard_bytes=shard_bytes,
        license=license_name,
        base_model=base_model,
        verify=verify,
    )
    typer.echo(json.dumps(report, indent=2))


@app.command("gguf")
def convert_gguf(
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR")],
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf")],
    kind: Annotated[
        str | None, typer.Option("--type", help="f32, f16, bf16 or q8_0; default: as the weights are.")
    ] = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(
            "--pre-tokenizer",
            metavar="NAME",
            help="llama.cpp's name of a byte-level tokenizer's pre-tokenizer, where it is not recognised.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; default: the file's.")
    ] = None,
) -> None:
    """Write a Hugging Face directory as a GGUF file for llama.cpp, with files for ollama and LM Studio beside it."""
    from tsugiki.pretrain.conversion.gguf.write import write_gguf

    report = write_gguf(hf_dir, file, kind, pre=pre_tokenizer, name=name)
    typer.echo(json.dumps(report, indent=2))


@app.command("verify-gguf")
def convert_verify_gguf(
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR")],
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf")],
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Lines whose ids and logits are compared in llama.cpp."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to compare logits on.")] = 512,
    llama_cpp: Annotated[
        bool | None,
        typer.Option("--llama-cpp/--no-llama-cpp", help="Ask llama.cpp; default: where it is installed."),
    ] = None,
) -> None:
    """Check that a GGUF file is the model of a Hugging Face directory: tensors, tokenizer, and llama.cpp's answers."""
    from tsugiki.pretrain.conversion.gguf.verify import verify_gguf

    report = verify_gguf(hf_dir, file, _lines(text), tokens=tokens, llama_cpp=llama_cpp)
    typer.echo(json.dumps(report, indent=2))


@app.command("verify")
def convert_verify(
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR")],
    megatron_dir: Annotated[Path, typer.Argument(metavar="MEGATRON_DIR")],
    iteration: IterationOption = None,
    logits: Annotated[bool, typer.Option("--logits", help="Compare fp32 logits too.")] = False,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="Text to compare logits on, a line a sample."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to compare logits on.")] = 512,
) -> None:
    """Check bit for bit that a Hugging Face directory and a Megatron checkpoint are the same model."""
    from tsugiki.tools import verify_checkpoint

    report = verify_checkpoint(
        hf_dir, megatron_dir, iteration=iteration, logits=logits, texts=_lines(text), tokens=tokens
    )
    typer.echo(json.dumps(report, indent=2))


def _lines(text: Path | None) -> list[str]:
    """Lines of a file that an option names.

    Raises:
        ConfigError: there is no such file.
    """
    if text is not None and not text.is_file():
        raise ConfigError("no such text file", where="--text", got=text)
    return [] if text is None else text.read_text(encoding="utf-8").splitlines()
