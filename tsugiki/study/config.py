"""The file of a study."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tsugiki.experiment.config.load import RawConfig, load_raw
from tsugiki.experiment.config.shipped import experiment_path
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.config.validate import validate
from tsugiki.experiment.config.yaml_values import parse
from tsugiki.experiment.errors import ConfigError

Values = dict[str, Any]
"""Dotted path -> plain value, as ``--set`` has them."""
_OF_THE_STUDY = ("name", "run_dir", "tracking", "workers")
"""Sections that the study sets for every trial."""


class Span(StrictModel):
    """Values that a random design draws: of ``choices``, or between two bounds."""

    choices: list[Any] | None = Field(default=None, min_length=1)
    """Values to draw from."""
    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Draw the logarithm evenly, as suits learning rates."""
    integer: bool = False
    """Whole numbers."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("either choices, or low and high")
        if self.low is not None and self.high is not None:
            if self.low >= self.high:
                raise ValueError(f"low below high, got {self.low} and {self.high}")
            if self.log and self.low <= 0:
                raise ValueError(f"log needs low above 0, got {self.low}")
        return self


class RandomDesign(StrictModel):
    """Trials at random: every key drawn by itself."""

    trials: int = Field(ge=1, le=10_000)
    """How many."""
    seed: int = Field(default=1234, ge=0)
    """Of the draws; more trials with the same seed begin with the same ones."""
    keys: dict[str, Span] = Field(min_length=1)
    """Dotted path -> what is drawn."""


class TrialResources(StrictModel):
    """What one trial takes while it runs on this machine."""

    cores: int = Field(default=1, ge=1)
    """Cores: processes of its CPU stages, threads of its training."""
    memory_gb: float = Field(default=0.0, ge=0)
    """Memory, in units of 10^9 bytes; 0 is not counted."""
    gpus: int = Field(default=0, ge=0)
    """GPUs; each trial sees its own alone."""


class Resources(StrictModel):
    """What a study may take of this machine; as many trials run at once as fit."""

    cores: int | None = Field(default=None, ge=1)
    """Cores; null is what this process may use."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory, in units of 10^9 bytes; null is what the machine has."""
    gpus: int = Field(default=0, ge=0)
    """GPUs, numbered from 0."""
    trial: TrialResources = TrialResources()
    """What one trial takes."""


class Failures(StrictModel):
    """What becomes of trials that fail. A request that is wrong (exit status 2) is not tried again."""

    attempts: int = Field(default=1, ge=1)
    """Times that a trial is started before it counts as failed."""
    then: Literal["go_on", "stop"] = "go_on"
    """`go_on` runs the other trials; `stop` starts no further one."""


class Objective(StrictModel):
    """What is best: few bits per byte in some languages, with a bound on what others may lose."""

    minimize: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Language -> weight of its bits per byte in the sum that is minimized, e.g. `{ja: 1}`."""
    bounds: dict[str, float] = {}
    """Language -> bits per byte that a trial may lose against the base, e.g. `{en: 0.05}`."""


class Price(StrictModel):
    """What the trials cost: of the plan before they run, of the clock afterwards."""

    gpu: str = "h100"
    """GPU that the plan is made for; see `tsugiki plan --gpu`."""
    per_gpu_hour: float | None = Field(default=None, ge=0)
    """Price of a GPU-hour, in any currency; null leaves costs out."""
    mfu: float = Field(default=0.4, gt=0, le=1)
    """Share of the GPU's peak that training reaches."""


class StudyConfig(StrictModel):
    """A study: an experiment, what its trials differ in, and what is asked. One of grid, trials and random."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study and of its folder: letters, digits, dot, dash, underscore."""
    experiment: str
    """YAML file of the experiment, relative to this file or to the working directory, or the name of a shipped one."""
    run_dir: str | None = None
    """Folder of the study, which holds a run directory for each trial; null is ``runs/<name>``."""
    set: Values = {}
    """Dotted path -> value, for all trials."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Dotted path -> values; a trial for every combination."""
    trials: list[Values] = []
    """A trial for each item: dotted path -> value."""
    random: RandomDesign | None = None
    """Trials at random."""
    resources: Resources = Resources()
    """What may be taken of this machine."""
    failures: Failures = Failures()
    """What becomes of trials that fail."""
    objective: Objective | None = None
    """What is best; null is the mean over all languages but English."""
    price: Price = Price()
    """What trials cost."""

    @model_validator(mode="after")
    def _one_design(self) -> Self:
        designs = [name for name in ("grid", "trials", "random") if getattr(self, name)]
        if len(designs) != 1:
            raise ValueError(f"one of grid, trials and random, got {' and '.join(designs) or 'none'}")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """Dotted paths in which trials differ, in the order they are written."""
        if self.random is not None:
            return tuple(self.random.keys)
        return tuple(self.grid) or tuple(dict.fromkeys(key for item in self.trials for key in item))

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        for key in [*self.keys, *self.set]:
            if key.partition(".")[0] in _OF_THE_STUDY:
                raise ValueError(f"{key}: the study sets {', '.join(_OF_THE_STUDY)} for each trial itself")
        for key in self.keys:
            for other in [*self.set, *(item for item in self.keys if item != key)]:
                if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
                    where = "set" if other in self.set else "what trials differ in"
                    raise ValueError(f"{key}: contradicts {other} in {where}; each value once")
        for key, values in [*self.grid.items(), ("trials", self.trials)]:
            twice = [text for text, count in Counter(map(repr, values)).items() if count > 1]
            if twice:
                raise ValueError(f"{key}: {twice[0]} twice; each value once")
        return self


def is_study(path: Path) -> bool:
    """Whether a file is a study and not an experiment: it names one."""
    return "experiment" in load_raw(path).values


def load_study(path: Path, overrides: list[str] | None = None) -> StudyConfig:
    """Read and check a study's file.

    Args:
        path: YAML file.
        overrides: ``a.b=c`` for the study.

    Raises:
        ConfigError: with the dotted path, the value, what was expected, file and line.
    """
    raw = load_raw(path, overrides or ())
    beside = experiment_path(path).parent / str(raw.values.get("experiment"))
    if beside.is_file():
        raw.values["experiment"] = str(beside)
    return validate(StudyConfig, raw)


def study_of_options(experiment: Path, options: list[str]) -> StudyConfig:
    """The study that ``CONFIG --set a=1,2,4 --set b=x`` means: a grid of the keys with several values.

    A comma within brackets or quotes divides nothing: ``a=[1,2]`` is one value, a list.

    Raises:
        ConfigError: a malformed option, a key twice, or no key with several values.
    """
    grid: dict[str, list[Any]] = {}
    fixed: Values = {}
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(
                "malformed --set", got=option, expected="dotted.path=value or dotted.path=value,value"
            )
        if name in grid or name in fixed:
            raise ConfigError("a key twice", where="--set", got=name, expected=f"--set {name}=value,value")
        values = parse(f"[{text}]", f"--set {option[:200]}", {}, (name,))
        if len(values) == 1:
            fixed[name] = values[0]
        else:
            grid[name] = values
    if not grid:
        raise ConfigError(
            "nothing to sweep over", where="--set", got=", ".join(options) or "no --set",
            expected="a key with several values, e.g. --set train.optimizer.learning_rate=1e-4,3e-4",
        )  # fmt: skip
    name = f"{experiment.stem}-sweep"
    return validate(
        StudyConfig, RawConfig({"name": name, "experiment": str(experiment), "set": fixed, "grid": grid}, {})
    )
