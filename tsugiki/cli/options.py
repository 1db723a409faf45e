"""Options that several commands share, their completion in the shell, and how commands speak."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsugiki.experiment.errors import ConfigError

if TYPE_CHECKING:
    from tsugiki.pipeline import Experiment


def complete_experiment(incomplete: str) -> Iterator[str]:
    """Shipped experiments by name, and YAML files and folders by path."""
    from tsugiki.experiment.config.shipped import experiments

    yield from _beginning(experiments(), incomplete)
    yield from _files(incomplete)


def complete_cluster(incomplete: str) -> Iterator[str]:
    """Clusters by name, and YAML files and folders by path."""
    from tsugiki.experiment.config.shipped import clusters

    yield from _beginning(clusters(), incomplete)
    yield from _files(incomplete)


def complete_stage(incomplete: str) -> Iterator[str]:
    """Names of stages."""
    from tsugiki.experiment.run.stage_names import STAGE_NAMES

    yield from _beginning(STAGE_NAMES, incomplete)


def complete_gpu(incomplete: str) -> Iterator[str]:
    """Names of GPUs that can be planned for."""
    from tsugiki.pretrain.planning.flops import GPUS

    yield from _beginning(GPUS, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> Iterator[str]:
    return (name for name in names if name.startswith(incomplete))


def _files(incomplete: str) -> Iterator[str]:
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        shown = f"{path}/" if path.is_dir() else str(path)
        if shown.startswith(incomplete) and (path.is_dir() or path.suffix in (".yaml", ".yml")):
            yield shown


ConfigArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file of the experiment, or the name of a shipped one.",
        autocompletion=complete_experiment,
    ),
]
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


def load(config: Path, overrides: list[str] | None, *, any_layout: bool = False) -> Experiment:
    """The experiment that a command was given."""
    from tsugiki.pipeline import load_experiment

    return load_experiment(config, overrides or (), any_layout=any_layout)


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    typer.echo(line)
    sys.stdout.flush()


def pairs(flag: str, values: list[str]) -> list[tuple[str, str]]:
    """The two halves of each ``NAME=PATH``.

    Raises:
        ConfigError: one has no half.
    """
    halves = [tuple(value.partition("=")[::2]) for value in values]
    for value, (name, path) in zip(values, halves, strict=True):
        if not name or not path:
            raise ConfigError(f"malformed {flag}", got=value, expected="NAME=PATH")
    return [(name, path) for name, path in halves]
