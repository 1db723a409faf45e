"""A study on one machine: as many trials at once as its resources allow, each in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

from tsugiki.experiment.config.strict import dump_yaml
from tsugiki.experiment.errors import ConfigError, Interrupted
from tsugiki.experiment.files import write_json_atomically, write_text_atomically
from tsugiki.experiment.parent import die_with_parent
from tsugiki.experiment.run.lock import locked
from tsugiki.experiment.run.shared import write_shared
from tsugiki.study.config import StudyConfig
from tsugiki.study.trials import Study, Unit

STATE_NAME = "trials.json"
STUDY_NAME = "study.yaml"
LOGS = "logs"
COMMAND = (sys.executable, "-m", "tsugiki", "run")
"""What runs stages of a trial; followed by its configuration, ``--from`` and ``--until``."""
_STOP_SECONDS = 120.0
State = Literal["waiting", "running", "done", "failed", "blocked", "stopped"]


@dataclass
class TrialState:
    """Where a trial is.

    Attributes:
        state: ``blocked`` waits for a stage that another trial failed to make.
        detail: why, or which stages run.
    """

    state: State = "waiting"
    detail: str = ""


@dataclass
class _Running:
    unit: int
    process: subprocess.Popen[bytes]
    descriptor: int
    gpus: list[int]


@dataclass
class Machine:
    """What is free of the machine.

    Attributes:
        cores: number.
        memory_gb: units of 10^9 bytes.
        gpus: numbers of GPUs.
    """

    cores: int
    memory_gb: float
    gpus: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, config: StudyConfig) -> Machine:
        """What the study may take.

        Raises:
            ConfigError: a single trial takes more.
        """
        import psutil

        resources, trial = config.resources, config.resources.trial
        # What is left out is what there is; a trial may always take that much.
        machine = cls(
            resources.cores or max(len(os.sched_getaffinity(0)), trial.cores),
            resources.memory_gb or psutil.virtual_memory().total / 1e9,
            list(range(resources.gpus)),
        )
        for name, has, wants in (
            ("cores", machine.cores, trial.cores),
            ("memory_gb", machine.memory_gb, trial.memory_gb),
            ("gpus", len(machine.gpus), trial.gpus),
        ):
            if wants > has:
                raise ConfigError(
                    "one trial takes more than there is for all of them",
                    where=f"resources.trial.{name}", got=wants, expected=f"at most resources.{name} = {has:.4g}",
                )  # fmt: skip
        return machine

    def fits(self, config: StudyConfig) -> bool:
        """Whether one more trial fits."""
        trial = config.resources.trial
        return (
            self.cores >= trial.cores and self.memory_gb >= trial.memory_gb and len(self.gpus) >= trial.gpus
        )

    def take(self, config: StudyConfig) -> list[int]:
        """What one trial takes; its GPUs."""
        trial = config.resources.trial
        self.cores -= trial.cores
        self.memory_gb -= trial.memory_gb
        taken, self.gpus = self.gpus[: trial.gpus], self.gpus[trial.gpus :]
        return taken

    def give_back(self, config: StudyConfig, gpus: Sequence[int]) -> None:
        """What a trial took is free again."""
        self.cores += config.resources.trial.cores
        self.memory_gb += config.resources.trial.memory_gb
        self.gpus = sorted([*self.gpus, *gpus])


def write_study(study: Study) -> None:
    """Write what describes the study, and for each trial its configuration and where it takes stages from."""
    write_text_atomically(study.directory / STUDY_NAME, dump_yaml(study.config))
    for trial in study.trials.values():
        trial.experiment.save_config()
        write_shared(trial.run_dir, study.taken(trial.name))


class LocalRun:
    """Runs the units of a study.

    Args:
        study: a checked study.
        announce: receives lines for the console.
        command: see :data:`COMMAND`.
    """

    def __init__(
        self, study: Study, announce: Callable[[str], None] = print, command: Sequence[str] = COMMAND
    ) -> None:
        self._study = study
        self._announce = announce
        self._command = command
        self.states = {name: TrialState() for name in study.trials}
        self._done: set[int] = set()
        self._over: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._known: set[int] = set()
        self._running: list[_Running] = []

    def run(self) -> Mapping[str, TrialState]:
        """Run what is not complete, until nothing is left that can run.

        Raises:
            ConfigError: another process runs this study, or a trial does not fit on the machine.
            Interrupted: a trial was asked to stop from outside.
        """
        machine = Machine.of(self._study.config)
        with locked(self._study.directory):
            write_study(self._study)
            try:
                self._start_all(machine)
                while self._running:
                    self._wait_for_one(machine)
                    self._start_all(machine)
            finally:
                self._stop_all()
                self._save()
        stopped = [name for name, state in self.states.items() if state.state == "stopped"]
        if stopped:
            raise Interrupted(
                "a trial was asked to stop", got=", ".join(stopped), fix="run the same command to go on"
            )
        return self.states

    def _start_all(self, machine: Machine) -> None:
        """Start what has what it needs, while there is room."""
        while self._start_some(machine):
            pass

    def _start_some(self, machine: Machine) -> bool:
        """Whether a unit was started, found complete or given up: then others may follow."""
        changed = False
        for position, unit in enumerate(self._study.units):
            if position in self._done | self._over or any(item.unit == position for item in self._running):
                continue
            broken = [before for before in unit.after if before in self._over]
            if broken:
                self._give_up(position, broken[0])
                changed = True
            elif set(unit.after) <= self._done and not self._halted():
                if position not in self._known and self._is_complete(unit):
                    self._finish(position)
                    changed = True
                elif machine.fits(self._study.config):
                    self._start(position, machine.take(self._study.config))
                    return True
                else:
                    self._known.add(position)  # not complete: asked once
        return changed

    def _halted(self) -> bool:
        """Whether no further trial is to be started."""
        failed = any(state.state == "failed" for state in self.states.values())
        stopped = any(state.state == "stopped" for state in self.states.values())
        return stopped or (failed and self._study.config.failures.then == "stop")

    def _is_complete(self, unit: Unit) -> bool:
        graph = self._study.trials[unit.trial].experiment.graph()
        stages = graph.select(unit.stages[0], unit.stages[-1])
        return all(decision.action == "skip" for decision in graph.preview(stages))

    def _start(self, position: int, gpus: list[int]) -> None:
        unit = self._study.units[position]
        trial = self._study.trials[unit.trial]
        self._known.add(position)
        self._attempts[position] = self._attempts.get(position, 0) + 1
        log = self._study.directory / LOGS / f"{unit.trial}.log"
        log.parent.mkdir(exist_ok=True)
        own = os.getpid()
        arguments = [
            *self._command, str(trial.run_dir / "config.yaml"), "--from", unit.stages[0], "--until", unit.stages[-1],
        ]  # fmt: skip
        with log.open("ab") as output:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(gpus),
                process_group=0,  # Ctrl-C reaches this process, which lets trials save
                preexec_fn=lambda: die_with_parent(own),  # noqa: PLW1509  # no thread of ours runs yet
            )
        self._running.append(_Running(position, process, os.pidfd_open(process.pid), gpus))
        self._set(unit.trial, "running", _stages(unit))
        self._announce(f"{self._progress()} {unit.trial}: {_stages(unit)}")

    def _environment(self, gpus: Sequence[int]) -> dict[str, str]:
        resources = self._study.config.resources
        environment = {**os.environ, "OMP_NUM_THREADS": str(resources.trial.cores)}
        if resources.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        return environment

    def _wait_for_one(self, machine: Machine) -> None:
        ended = wait([item.descriptor for item in self._running])
        for item in [item for item in self._running if item.descriptor in ended]:
            self._running.remove(item)
            os.close(item.descriptor)
            machine.give_back(self._study.config, item.gpus)
            status = item.process.wait()
            if status == 0:
                self._finish(item.unit)
            else:
                self._failed(item.unit, status)

    def _finish(self, position: int) -> None:
        self._done.add(position)
        name = self._study.units[position].trial
        left = [
            at for at, unit in enumerate(self._study.units) if unit.trial == name and at not in self._done
        ]
        self._set(name, "waiting" if left else "done")
        if not left:
            self._announce(f"{self._progress()} {name}: done")

    def _failed(self, position: int, status: int) -> None:
        unit = self._study.units[position]
        log = self._study.directory / LOGS / f"{unit.trial}.log"
        if status == Interrupted.exit_code:
            self._over.add(position)
            self._set(unit.trial, "stopped", _stages(unit))
            return
        why = f"signal {-status}" if status < 0 else f"exit status {status}"
        again = (
            self._attempts[position] < self._study.config.failures.attempts
            and status != ConfigError.exit_code
        )
        if again:
            self._set(unit.trial, "waiting", f"{why} in {_stages(unit)}; tried again")
        else:
            self._over.add(position)
            self._set(unit.trial, "failed", f"{why} in {_stages(unit)}; see {log}")
        self._announce(
            f"{self._progress()} {unit.trial}: {self.states[unit.trial].detail}\n{_last_lines(log)}"
        )

    def _give_up(self, position: int, broken: int) -> None:
        """A unit that needs one which will never be done."""
        self._over.add(position)
        name, other = self._study.units[position].trial, self._study.units[broken].trial
        if name != other and self.states[name].state != "failed":
            self._set(name, "blocked", f"{_stages(self._study.units[broken])} of {other} failed")

    def _stop_all(self) -> None:
        """Ask what still runs to save and stop; kill what does not within two minutes."""
        for item in self._running:
            item.process.send_signal(signal.SIGTERM)
        for item in self._running:
            try:
                item.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                item.process.kill()
                item.process.wait()
            os.close(item.descriptor)
            self._set(self._study.units[item.unit].trial, "stopped", _stages(self._study.units[item.unit]))
        self._running = []

    def _set(self, trial: str, state: State, detail: str = "") -> None:
        self.states[trial] = TrialState(state, detail)
        self._save()

    def _save(self) -> None:
        trials = {
            name: {
                "values": trial.values,
                "state": self.states[name].state,
                "detail": self.states[name].detail,
            }
            for name, trial in self._study.trials.items()
        }
        value = {"schema_version": 1, "name": self._study.config.name, "trials": trials}
        write_json_atomically(self._study.directory / STATE_NAME, value)

    def _progress(self) -> str:
        over = sum(state.state in ("done", "failed", "blocked") for state in self.states.values())
        return f"[{over}/{len(self.states)}]"


def _stages(unit: Unit) -> str:
    return unit.stages[0] if len(unit.stages) == 1 else f"{unit.stages[0]} to {unit.stages[-1]}"


def _last_lines(log: Path, most: int = 6) -> str:
    """The end of a log, indented."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-most:])
