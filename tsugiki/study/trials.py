"""The trials of a study as experiments: checked together, with the stages that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tsugiki.experiment.config.fingerprint import fingerprint
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.files import sha256_json
from tsugiki.study.config import StudyConfig, Values
from tsugiki.study.design import designed, trial_name

if TYPE_CHECKING:
    from tsugiki.experiment.run.graph import Graph, Stage


class TrialExperiment(Protocol):
    """What a study asks of an experiment; :class:`tsugiki.pipeline.Experiment` has it."""

    @property
    def config(self) -> Any:
        """The checked configuration."""

    @property
    def run_dir(self) -> Path:
        """Directory of the artefacts."""

    def graph(self, announce: Callable[[str], None] = print) -> Graph:
        """The stage graph."""

    def save_config(self) -> None:
        """Write the resolved configuration into the run directory."""


Load = Callable[..., TrialExperiment]
"""``load(path, overrides, *, values)``, as :func:`tsugiki.pipeline.load_experiment`."""


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        name: of the trial and its run directory.
        values: in which it differs from the others.
        experiment: the whole experiment.
        keys: stage -> hash that trials have in common which make the same.
    """

    name: str
    values: Values
    experiment: TrialExperiment
    keys: Mapping[str, str]

    @property
    def run_dir(self) -> Path:
        """Directory of its artefacts."""
        return self.experiment.run_dir


@dataclass(frozen=True)
class Unit:
    """Consecutive stages of a trial that one process runs.

    Attributes:
        trial: name of the trial.
        stages: their names.
        after: positions of the units that have to be done before.
        shared: names of the trials that take these stages too.
    """

    trial: str
    stages: tuple[str, ...]
    after: tuple[int, ...]
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        config: its file.
        directory: its folder.
        trials: by name, in order.
    """

    config: StudyConfig
    directory: Path
    trials: Mapping[str, Trial]

    @cached_property
    def makers(self) -> dict[str, dict[str, str]]:
        """Trial -> stage -> trial that makes it: the first in order whose stage has the same key."""
        first: dict[str, str] = {}
        found: dict[str, dict[str, str]] = {}
        for name, trial in self.trials.items():
            found[name] = {stage: first.setdefault(key, name) for stage, key in trial.keys.items()}
        return found

    def taken(self, trial: str) -> dict[str, Path]:
        """Stage -> run directory that makes it, for those that another trial makes."""
        return {
            stage: self.trials[maker].run_dir for stage, maker in self.makers[trial].items() if maker != trial
        }

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """What processes have to run, each after what it needs.

        A unit ends where the trials that share its stages change, so that they can start as soon as their part is
        there. Stages that a trial takes from others are linked by the process of the stages behind them.
        """
        users: dict[tuple[str, str], list[str]] = {}
        for name, makers in self.makers.items():
            for stage, maker in makers.items():
                if maker != name:
                    users.setdefault((maker, stage), []).append(name)
        units: list[Unit] = []
        made_by: dict[tuple[str, str], int] = {}  # (trial, stage) -> unit
        for name, makers in self.makers.items():
            previous: int | None = None
            for stages in self._segments(name, users):
                after = {made_by[makers[stage], stage] for stage in stages if makers[stage] != name}
                after |= set() if previous is None else {previous}
                previous = len(units)
                made_by |= {(name, stage): previous for stage in stages if makers[stage] == name}
                taking = dict.fromkeys(
                    user for stage in stages if makers[stage] == name for user in users.get((name, stage), [])
                )
                units.append(Unit(name, tuple(stages), tuple(sorted(after)), tuple(taking)))
        return tuple(units)

    def _segments(self, name: str, users: Mapping[tuple[str, str], Sequence[str]]) -> Iterator[list[str]]:
        """Stages of a trial in groups: first what it takes, then what it makes for the same others."""
        makers = self.makers[name]
        segment: list[str] = []
        made_for: list[str] | None = None  # None: only taken stages so far
        for stage, maker in makers.items():
            if maker != name:
                if made_for is not None:
                    yield segment
                    segment, made_for = [], None
                segment.append(stage)
                continue
            wanted = list(users.get((name, stage), []))
            if made_for is not None and wanted != made_for:
                yield segment
                segment = []
            segment.append(stage)
            made_for = wanted
        if segment:
            yield segment


def make_study(config: StudyConfig, load: Load) -> Study:
    """Load and check all trials of a study.

    Args:
        config: its file.
        load: loads an experiment.

    Raises:
        ConfigError: a trial's configuration is wrong; two trials make the same; no stage reads a key; trials would
            measure different text.
    """
    directory = expand_path(config.run_dir) if config.run_dir else Path("runs") / config.name
    trials: dict[str, Trial] = {}
    for name, values in designed(config).items():
        try:
            trials[name] = _trial(config, directory, name, values, load)
        except ConfigError as error:
            raise ConfigError(
                f"trial {name}: {error.what}",
                where=error.where, got=error.got, expected=error.expected, fix=error.fix,
            ) from error  # fmt: skip
    study = Study(config, directory, trials)
    _check_keys_are_read(study, load)
    _check_trials_differ(study)
    _check_same_measure(study)
    return study


def _trial(config: StudyConfig, directory: Path, name: str, values: Values, load: Load) -> Trial:
    own = {
        "name": f"{config.name}-{name}"[:120],
        "run_dir": str(directory / name),
        "workers": config.resources.trial.cores,
        # all trials in one place, where the tracker's own table ranks them
        "tracking.experiment": config.name,
    }
    experiment = load(Path(config.experiment), (), values={**config.set, **values, **own})
    return Trial(name, values, experiment, _keys(experiment))


def _keys(experiment: TrialExperiment) -> dict[str, str]:
    graph = experiment.graph()
    return common_keys(list(graph.stages.values()), graph.seed)


def common_keys(stages: Sequence[Stage], seed: int) -> dict[str, str]:
    """Stage -> a hash that two experiments have in common when they will make the same; nothing need be made yet.

    Like the key of a stage, with the hashes of its input stages in place of the contents of their output, and names in
    place of the contents of files outside the run.

    Args:
        stages: in an order in which every stage follows its inputs.
        seed: of the experiment.
    """
    found: dict[str, str] = {}
    for stage in stages:
        outside = None if stage.sources is None else sorted(map(str, stage.sources()))
        inputs = {
            name: str(stage.external[name].absolute()) if name in stage.external else found[name]
            for name in stage.inputs
        }
        found[stage.name] = sha256_json(
            [stage.name, fingerprint(stage.config), seed, stage.version, inputs, outside]
        )
    return found


def _check_keys_are_read(study: Study, load: Load) -> None:
    """Refuse a key that changes no stage whatever it is set to."""
    first = next(iter(study.trials.values()))
    for key in study.config.keys:
        values = {
            repr(trial.values[key]): trial.values[key]
            for trial in study.trials.values()
            if key in trial.values
        }
        others = [
            value
            for text, value in values.items()
            if key not in first.values or text != repr(first.values[key])
        ]
        if others and not any(_makes_another(study, load, first, key, value) for value in others):
            raise ConfigError(
                "no stage reads this key: its trials would all be the same",
                where=key,
                got=", ".join(values),
                expected="a key that changes what is made",
                fix=f"give {key} one value, under `set`",
            )


def _makes_another(study: Study, load: Load, first: Trial, key: str, value: Any) -> bool:
    """Whether a trial with one other value makes something else."""
    changed = {**first.values, key: value}
    try:
        known = study.trials.get(trial_name(changed))
        other = known or _trial(study.config, study.directory, first.name, changed, load)
    except ConfigError:  # a combination that cannot be, and that the study may not have: the key is read
        return True
    return other.keys != first.keys


def _check_trials_differ(study: Study) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name, trial in study.trials.items():
        earlier = seen.setdefault(tuple(trial.keys.values()), name)
        if earlier != name:
            raise ConfigError(
                "two trials would make the same",
                got=f"{earlier} and {name}",
                expected="trials that differ in what a stage reads",
                fix="leave one of them out",
            )


def _check_same_measure(study: Study) -> None:
    """Refuse trials that would be measured on different text, or in different ways."""
    measures: dict[str, str] = {}
    for name, trial in study.trials.items():
        config = trial.experiment.config
        for section, part in (
            ("evaluate", getattr(config, "evaluate", None)),
            ("corpus.heldout", getattr(getattr(config, "corpus", None), "heldout", None)),
        ):
            first = measures.setdefault(section, fingerprint(part))
            if fingerprint(part) != first:
                raise ConfigError(
                    "trials measured on different text, or in different ways, cannot be compared",
                    where=section,
                    got=f"{next(iter(study.trials))} and {name} differ in it",
                    expected=f"the same {section} in all trials",
                    fix="give it one value, under `set`",
                )
