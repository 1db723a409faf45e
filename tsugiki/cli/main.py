"""Command line of Tsugiki: graft a new language onto an existing LLM."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from tsugiki.experiment.errors import ConfigError, Interrupted, TsugikiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tsugiki.experiment.graph import Stage
    from tsugiki.pipeline import Experiment

# Nothing is downloaded on the default path, and forked tokenizers must not warn into progress bars.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

app = typer.Typer(
    name="tsugiki",
    help="""Graft a new language onto an existing LLM.

    One YAML file describes an experiment; `tsugiki run CONFIG` takes it from raw text to a Hugging Face
    model with an extended vocabulary and a report. Finished stages are skipped, interrupted ones go on.

    Start with: tsugiki run configs/quickstart.yaml""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Extend a vocabulary, or compare tokenizers.")
convert_app = typer.Typer(no_args_is_help=True, help="Hugging Face to Megatron and back, bit for bit.")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(convert_app, name="convert")

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the experiment.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Override a value by dotted path; list items by name or position. Repeatable.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show what would happen; start nothing.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Redo the selected stages even when unchanged.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def _load(config: Path, overrides: list[str] | None, *, any_layout: bool = False) -> Experiment:
    from tsugiki.pipeline import load_experiment

    return load_experiment(config, overrides or (), any_layout=any_layout)


def _run(
    config: Path,
    overrides: list[str] | None,
    *,
    start: str | None = None,
    until: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> None:
    experiment = _load(config, overrides)
    graph = experiment.graph(announce=_say)
    selected = graph.select(start, until)
    if dry_run:
        typer.echo(f"{experiment.config.name}: {config} is valid; run directory {experiment.run_dir}")
        for decision in graph.preview(selected, force=force):
            typer.echo(f"  {decision.stage:<10}{decision.action:<8}{decision.reason}")
        for line in _missing(experiment, selected):
            typer.echo(f"  {line}")
        return
    experiment.check_base(selected)
    for line in _missing(experiment, selected, "evaluate"):  # hours from now, not at once
        typer.secho(f"warning: {line}", fg=typer.colors.YELLOW, err=True)
    experiment.save_config()
    graph.run(selected, experiment.config, force=force)
    report = experiment.run_dir / "report" / "index.html"
    if until is None and report.is_file():
        _say(f"report: {report}")


def _missing(experiment: Experiment, selected: Sequence[Stage], section: str = "") -> list[str]:
    """Inputs that these stages will look for in vain, a line for each place of the configuration."""
    places: dict[str, list[str]] = {}
    for location, path in experiment.missing_inputs(selected):
        if location[0] == section or not section:
            places.setdefault(".".join(map(str, location)), []).append(path)
    return [f"not on this machine: {place} = {', '.join(paths)}" for place, paths in places.items()]


def _say(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()


@app.command()
def run(
    config: ConfigArgument,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="First stage; earlier ones are taken as they are."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Last stage.")] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    scale: Annotated[
        Literal["full", "tiny"],
        typer.Option("--scale", help="tiny: the same experiment in miniature, on 4 CPU processes."),
    ] = "full",
) -> None:
    """Run an experiment: all stages, or a range of them.

    Stages: corpus, base (only for base.scratch), tokenizer, tokens, graft, train, export, evaluate, report.
    """
    if scale == "tiny":
        from tsugiki.pretrain.planning.tiny import write_tiny

        config, overrides = write_tiny(config, overrides or ()), None
    _run(config, overrides, start=start, until=until, dry_run=dry_run, force=force)


def _add_stage_command(name: str, summary: str) -> None:
    def command(
        config: ConfigArgument,
        overrides: SetOption = None,
        dry_run: DryRunOption = False,
        force: ForceOption = False,
    ) -> None:
        _run(config, overrides, start=name, until=name, dry_run=dry_run, force=force)

    command.__doc__ = summary + " Earlier stages must be complete."
    app.command(name)(command)


for _name, _summary in (
    ("corpus", "Filter, deduplicate and split the sources."),
    ("tokens", "Encode the corpus and plan the mixture."),
    ("graft", "Write the base model with the extended vocabulary as a Megatron checkpoint."),
    ("train", "Continue pretraining."),
    ("export", "Write the trained model as a Hugging Face directory and verify it."),
    ("evaluate", "Bits per byte and samples, base against result."),
):
    _add_stage_command(_name, _summary)


@tokenizer_app.command("extend")
def tokenizer_extend(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
) -> None:
    """Train, select, merge and prove the vocabulary extension. The corpus stage must be complete."""
    _run(config, overrides, start="tokenizer", until="tokenizer", dry_run=dry_run, force=force)


@tokenizer_app.command("report")
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
    tokenizers = {name: Path(path) for name, path in _pairs("--tokenizer", tokenizer)}
    texts: dict[str, list[Path]] = {}
    for language, path in _pairs("--text", text):
        texts.setdefault(language, []).append(Path(path))
    aligned = {language: Path(path) for language, path in _pairs("--parallel", parallel or [])}
    from tsugiki.tokenizer.report import run_report

    run_report(tokenizers, texts, out, parallel=aligned or None, model=model, limit_bytes=limit_bytes)
    _say(f"report: {out / 'report.html'}")


def _pairs(flag: str, values: list[str]) -> list[tuple[str, str]]:
    pairs = [tuple(value.partition("=")[::2]) for value in values]
    for value, (name, path) in zip(values, pairs, strict=True):
        if not name or not path:
            raise ConfigError(f"malformed {flag}", got=value, expected="NAME=PATH")
    return [(name, path) for name, path in pairs]


OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output directory if it exists.")
]
IterationOption = Annotated[
    int | None, typer.Option("--iteration", metavar="N", help="Step of a training run; default: the last.")
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Threads.")]


@convert_app.command("import")
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
    from tsugiki.experiment.config import RawConfig, validate
    from tsugiki.pretrain.convert import import_checkpoint
    from tsugiki.pretrain.convert_config import GraftConfig

    values = {"init": init, "dtype": dtype, "trim_padding_rows": trim_padding_rows}
    config = validate(GraftConfig, RawConfig(values, {}))
    report = import_checkpoint(
        hf_dir,
        megatron_dir,
        tokenizer_dir=tokenizer,
        config=config,
        workers=workers,
        seed=seed,
        overwrite=overwrite,
    )
    typer.echo(json.dumps(report, indent=2))


@convert_app.command("export")
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
    from tsugiki.experiment.config import RawConfig, validate
    from tsugiki.pretrain.convert import export_checkpoint
    from tsugiki.pretrain.convert_config import ExportConfig

    values = {
        "iteration": iteration,
        "dtype": dtype,
        "shard_bytes": shard_bytes,
        "license": license_name,
        "base_model": base_model,
        "verify": verify,
    }
    report = export_checkpoint(
        megatron_dir,
        hf_dir,
        tokenizer_dir=tokenizer,
        base_dir=base,
        config=validate(ExportConfig, RawConfig(values, {})),
        workers=workers,
        overwrite=overwrite,
    )
    typer.echo(json.dumps(report, indent=2))


@convert_app.command("verify")
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
    from tsugiki.pretrain.convert import verify_checkpoint

    if text is not None and not text.is_file():
        raise ConfigError("no such text file", where="--text", got=text)
    texts = [] if text is None else text.read_text(encoding="utf-8").splitlines()
    report = verify_checkpoint(
        hf_dir, megatron_dir, iteration=iteration, logits=logits, texts=texts, tokens=tokens
    )
    typer.echo(json.dumps(report, indent=2))


@app.command()
def submit(
    config: ConfigArgument,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster", metavar="NAME|FILE", help="A file of configs/clusters by name, or any file by path."
        ),
    ],
    overrides: SetOption = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Last stage; submit the rest later.")
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Submit an experiment to Slurm: each stage a job that waits for the one before.

    `--set cluster.A.B=C` overrides the cluster file. `--dry-run` prints every sbatch script. Complete
    stages are skipped, and what waits or runs already is never submitted twice.
    """
    from tsugiki.slurm.submit import submit as submit_jobs

    submit_jobs(config, cluster, overrides or (), dry_run, announce=_say, until=until)


@app.command()
def cancel(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    now: Annotated[bool, typer.Option("--now", help="Do not let a running training save first.")] = False,
) -> None:
    """Stop all Slurm jobs of a run; a running training saves a checkpoint first."""
    from tsugiki.slurm.jobs import cancel as cancel_jobs

    cancel_jobs(run_dir, wait_seconds=0.0 if now else 90.0, announce=_say)


@app.command()
def status(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")], as_json: JsonOption = False) -> None:
    """Show the stages of a run, its Slurm jobs, the training step, loss, speed and time left."""
    from tsugiki.slurm.jobs import status as read_status

    found = read_status(run_dir)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else found.to_text())


@app.command()
def plan(
    config: ConfigArgument,
    overrides: SetOption = None,
    gpu: Annotated[
        str, typer.Option("--gpu", help="What to plan for: a100-40gb, a100-80gb, h100, h200, b200, l40s.")
    ] = "h100",
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=1, help="GPUs in all; default: train.parallel.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", metavar="N", min=1, help="Default: 8.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME|FILE",
            help="Take nodes and GPUs per node of the training from a cluster file.",
        ),
    ] = None,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.01, max=1.0, help="Share of the GPU's peak that training reaches.")
    ] = 0.4,
    as_json: JsonOption = False,
) -> None:
    """Parameters, GPU memory per pipeline stage, tokens, steps, hours, storage; starts nothing."""
    from tsugiki.pretrain.planning.flops import find_gpu
    from tsugiki.pretrain.planning.layouts import Machine
    from tsugiki.pretrain.planning.plan import make_plan

    if cluster is not None:
        from tsugiki.slurm.config import load_cluster, split_overrides

        overrides, of_cluster = split_overrides(overrides or ())
        wanted = load_cluster(cluster, of_cluster)[0].resources("train")
        gpus_per_node = gpus_per_node or wanted.gpus_per_node or None
        gpus = gpus or wanted.nodes * wanted.gpus_per_node or None
    experiment = _load(config, overrides, any_layout=True)
    made = make_plan(
        name=experiment.config.name,
        base=experiment.config.base,
        extension=experiment.config.tokenizer.extend,
        total_tokens=experiment.config.tokens.mixture.total_tokens,
        train=experiment.config.train,
        machine=Machine(find_gpu(gpu), gpus_per_node or 8, mfu),
        graft=experiment.config.graft,
        run_dir=experiment.run_dir,
        world_size=gpus,
    )
    typer.echo(json.dumps(made.to_json(), indent=2) if as_json else made.to_text())


@app.command()
def compare(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Two or more finished runs.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page and its data go.")] = Path(
        "runs/compare"
    ),
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side in bits per byte: extended against not extended vocabulary, for instance."""
    from tsugiki.evaluation.compare import compare as compare_runs

    comparison = compare_runs(run_dirs, out)
    typer.echo(json.dumps(comparison.values, indent=2) if as_json else "\n".join(comparison.summary))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say which accelerator tier is active, what is missing and how to get it."""
    from tsugiki.experiment.doctor import examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([check.__dict__ for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{check.state:<8}{check.name:<22}{check.detail}")
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


def main() -> NoReturn:
    """Entry point: exit status 0 success, 1 the work failed, 2 the request was wrong, 75 asked to stop."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _stop)
    try:
        app(standalone_mode=True)
    except TsugikiError as error:
        sys.stdout.flush()
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.secho("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except SystemExit as ended:
        if ended.code == Interrupted.exit_code:
            typer.secho("asked to stop; run the same command again to go on", err=True)
        raise
    sys.exit(0)


def _stop(number: int, frame: Any) -> NoReturn:
    sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
