"""The stage graph of an experiment: what is complete, what has to run, running it.

A stage directory is complete when it holds a manifest and every file the manifest names. While a
stage runs it writes to ``<stage>.partial``; at the end the manifest is written and the directory is
renamed, so a reader sees a whole stage or none. A resumable stage finds its partial directory again
when nothing that decides its output has changed; otherwise the partial work of training is set
aside, never deleted.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from tsugiki.experiment.config.fingerprint import fingerprint
from tsugiki.experiment.config.flat import flatten
from tsugiki.experiment.errors import CheckpointError, ConfigError, Interrupted, TsugikiError, os_error
from tsugiki.experiment.files import remove_unfinished, sha256_json, write_json_atomically
from tsugiki.experiment.run.digest import ExternalDigests
from tsugiki.experiment.run.folders import (
    KEY_NAME,
    refuse_foreign_partial,
    refuse_foreign_stage,
    refuse_unusable,
    remove_folder,
)
from tsugiki.experiment.run.lock import locked
from tsugiki.experiment.run.manifest import Manifest, describe_outputs, git_revision, versions
from tsugiki.experiment.run.shared import link_stage, made_elsewhere
from tsugiki.experiment.run.stage import StageContext, StageFunction, StageResult
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.runs import RunIds, Trackers, check_installed, job_tags, open_run
from tsugiki.experiment.tracking.tracker import RunStatus

Action = Literal["skip", "link", "run", "resume"]
WORK_NAME = ".work"
"""Folder of a partial stage for what only an interrupted attempt needs; not part of the result."""
_PARENT = "experiment"
"""Name of the parent run among the ids of runs."""
_SECONDARY_RANK_WAIT_SECONDS = 600.0
_NO_SPACE_SIGNS = ("No space left on device", "os error 28", "code: 28,", "StorageFull")


@dataclass(frozen=True)
class Stage:
    """A node of the graph.

    Attributes:
        name: name of the stage and of its directory.
        config: its section of the configuration.
        inputs: names of the stages whose directories it reads.
        function: ``package.module:function`` of its ``run``, imported only when it runs.
        external: directories outside the run that stand in for inputs, by input name.
        sources: gives the files outside the run directory whose content decides the output.
        keep_partial: partial work is found again after an interruption.
        precious: superseded results are set aside instead of deleted.
        version: raised when the same configuration gives another output than before.
    """

    name: str
    config: BaseModel | None
    inputs: tuple[str, ...]
    function: str
    external: Mapping[str, Path] = field(default_factory=dict)
    sources: Callable[[], Sequence[Path] | Mapping[Path, Path]] | None = None
    keep_partial: bool = False
    precious: bool = False
    version: int = 1

    def load(self) -> StageFunction:
        """Import the stage's function."""
        module, _, name = self.function.partition(":")
        loaded: StageFunction = getattr(importlib.import_module(module), name)
        return loaded


@dataclass(frozen=True)
class Decision:
    """What will happen to a stage and why."""

    stage: str
    action: Action
    reason: str


class Graph:
    """The stages of one experiment and their run directory.

    Args:
        stages: in an order in which every stage follows its inputs.
        run_dir: the experiment's directory.
        context: what stages get besides configuration and inputs.
        tracking: where to track, None to leave tracking off.
        announce: receives lines for the console.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        run_dir: Path,
        context: StageContext,
        tracking: TrackingConfig | None = None,
        announce: Callable[[str], None] = print,
    ) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.run_dir = run_dir
        self._context = context
        self._tracking = tracking or TrackingConfig(enabled=False)
        self._run_ids = RunIds(run_dir, self._tracking)
        self._announce = announce
        self._external = ExternalDigests(run_dir.parent / ".input-digests.json")

    @property
    def seed(self) -> int:
        """Seed of the experiment."""
        return self._context.seed

    # --- what is there -------------------------------------------------------------------------

    def directory(self, name: str) -> Path:
        """Directory of a stage's finished output."""
        stage_dir = self.run_dir / name
        return stage_dir

    def partial(self, name: str) -> Path:
        """Directory of a stage's unfinished output."""
        return self.run_dir / f"{name}.partial"

    def input_paths(self, stage: Stage) -> dict[str, Path]:
        """Directories the stage reads, by input name."""
        return {name: stage.external.get(name, self.directory(name)) for name in stage.inputs}

    def complete(self, name: str) -> Manifest | None:
        """The manifest of a stage when its directory is whole, whatever made it."""
        manifest = Manifest.load(self.directory(name))
        return None if manifest is None or manifest.damage(self.directory(name)) else manifest

    def key_parts(self, stage: Stage) -> dict[str, str]:
        """The hashes that decide a stage's output.

        Raises:
            CheckpointError: an input stage is not complete.
            ConfigError: an external input does not exist.
        """
        parts = {
            "configuration": fingerprint(stage.config),
            "seed": str(self._context.seed),
            "stage version": str(stage.version),
        }
        for name, path in self.input_paths(stage).items():
            if name in stage.external:
                if not path.exists():
                    raise ConfigError(
                        f"the {name} given does not exist",
                        where=f"{name}.path",
                        got=path,
                        expected="a Hugging Face model directory",
                    )
                parts[f"input {name}"] = self._external.digest([path])
            else:
                manifest = self.complete(name)
                if manifest is None:
                    raise CheckpointError(
                        f"stage '{stage.name}' needs the output of stage '{name}', which is not complete",
                        where=path,
                        fix=f"run `tsugiki run CONFIG --until {stage.name}`",
                    )
                parts[f"input {name}"] = manifest.digest
        if stage.sources is not None:
            parts["source files"] = self._external.digest(stage.sources())
        return parts

    # --- what will happen ----------------------------------------------------------------------

    def select(self, start: str | None, until: str | None) -> list[Stage]:
        """Stages from ``start`` until ``until``, both included.

        Raises:
            ConfigError: a name is not a stage of this experiment, or the range is empty.
        """
        names = list(self.stages)
        for flag, name in (("--from", start), ("--until", until)):
            if name is not None and name not in names:
                raise ConfigError(f"{flag} names no stage", got=name, expected=f"one of {', '.join(names)}")
        first = names.index(start) if start else 0
        last = names.index(until) if until else len(names) - 1
        if first > last:
            raise ConfigError("--from comes after --until", got=f"--from {start} --until {until}")
        return [self.stages[name] for name in names[first : last + 1]]

    def decide(self, stage: Stage, *, force: bool = False) -> Decision:
        """Whether a stage has to run, its inputs being complete."""
        parts = self.key_parts(stage)
        key = sha256_json(parts)
        directory = self.directory(stage.name)
        manifest = Manifest.load(directory)
        if manifest is not None and not force:
            damage = manifest.damage(directory)
            if damage is None and manifest.key == key:
                return Decision(stage.name, "skip", "complete and unchanged")
            reason = damage or _difference(manifest.key_parts, parts)
        elif manifest is not None:
            reason = "forced"
        else:
            reason = "not done yet"
        if not force and (made := made_elsewhere(self.run_dir, stage.name, key)) is not None:
            return Decision(stage.name, "link", f"made already: {made}")
        if not force and stage.keep_partial and _partial_key(self.partial(stage.name)) == key:
            return Decision(stage.name, "resume", "interrupted earlier, continues")
        return Decision(stage.name, "run", reason)

    def preview(self, stages: Sequence[Stage], *, force: bool = False) -> list[Decision]:
        """What ``run`` would do, without doing it; nothing is written.

        Raises:
            ConfigError: the run directory cannot be used, or holds what the stages would replace and is not ours.
        """
        self._refuse_foreign(stages)
        decisions: list[Decision] = []
        changing: set[str] = set()
        for stage in stages:
            upstream = [name for name in stage.inputs if name in changing]
            if upstream:
                done = self.complete(stage.name) is not None
                reason = f"after {', '.join(upstream)}" + (
                    ", unless their output stays the same" if done else ""
                )
                decisions.append(Decision(stage.name, "run", reason))
                changing.add(stage.name)
                continue
            try:
                decision = self.decide(stage, force=force)
            except CheckpointError as error:
                decision = Decision(stage.name, "run", f"cannot start: {error.what}")
            if decision.action != "skip":
                changing.add(stage.name)
            decisions.append(decision)
        return decisions

    # --- doing it ------------------------------------------------------------------------------

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run directory, which is made; see :func:`tsugiki.experiment.run.lock.locked`.

        Raises:
            ConfigError: it cannot be made or written to, or another process works in it.
        """
        return locked(self.run_dir)

    def run(
        self,
        stages: Sequence[Stage],
        config: BaseModel,
        *,
        force: bool = False,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Run what has to run, in order.

        Args:
            stages: as :meth:`select` gives them.
            config: of the experiment, for the trackers.
            force: redo them even when unchanged.
            begin: called once the run directory is ours, before anything else is written into it.

        Raises:
            ConfigError: as :meth:`preview` and :meth:`lock`; nothing has been changed then.
            TsugikiError: a stage failed; earlier stages stay complete.
        """
        if _rank() > 0:  # rank 0 looks at the folders, and changes them meanwhile
            for stage in stages:
                self._join(stage)
            return
        self._refuse_foreign(stages)
        with self.lock():
            check_installed(self._tracking)
            remove_unfinished(self.run_dir, below=False)
            if begin is not None:
                begin()
            self._external.keep = True
            parent: Trackers | None = None
            status: RunStatus = "FAILED"
            try:
                for position, stage in enumerate(stages, start=1):
                    decision = self.decide(stage, force=force)
                    label = f"[{position}/{len(stages)}] {stage.name}"
                    if decision.action == "skip":
                        self._announce(f"{label}: skipped, {decision.reason}")
                        continue
                    self._announce(f"{label}: {decision.reason}")
                    if decision.action == "link":
                        self._link(stage, decision)
                        continue
                    parent = parent or self._open_parent(config)
                    self._execute(stage, decision, parent)
                status = "FINISHED"
            except (KeyboardInterrupt, SystemExit, Interrupted):
                status = "KILLED"
                raise
            finally:
                if parent is not None:
                    parent.terminate(status)

    def _refuse_foreign(self, stages: Sequence[Stage]) -> None:
        refuse_unusable(self.run_dir, "the run directory")
        for stage in stages:
            refuse_foreign_stage(self.directory(stage.name), stage.name)
            refuse_foreign_partial(self.partial(stage.name), stage.name)

    def _open_parent(self, config: BaseModel) -> Trackers:
        tracker = open_run(
            self._tracking, self.run_dir, self._context.experiment_name, run_ids=self._run_ids.of(_PARENT)
        )
        self._run_ids.remember(_PARENT, tracker.run_ids)
        tracker.log_params(flatten(config.model_dump(mode="json")))
        if (self.run_dir / "config.yaml").is_file():
            tracker.log_artifact(self.run_dir / "config.yaml")
        return tracker

    def _execute(self, stage: Stage, decision: Decision, parent: Trackers) -> None:
        parts = self.key_parts(stage)
        partial = self.partial(stage.name)
        tracker = self._open_child(stage, decision, parent)
        context = StageContext(
            seed=self._context.seed,
            workers=self._context.workers,
            tracker=tracker,
            experiment_name=self._context.experiment_name,
        )
        started = datetime.now(UTC).isoformat(timespec="seconds")
        clock = time.monotonic()
        status: RunStatus = "FAILED"
        try:
            self._prepare_partial(stage, decision, parts)
            result = stage.load()(stage.config, self.input_paths(stage), partial, context)
            self._seal(stage, result, parts, started, time.monotonic() - clock)
            seconds = time.monotonic() - clock
            self._track_result(stage, result, tracker, seconds)
            # The trackers' own tables rank experiments by what their parent runs carry.
            parent.log_metrics({**result.metrics, f"{stage.name}/seconds": seconds})
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit, Interrupted):
            status = "KILLED"
            raise
        except OSError as error:
            raise os_error(f"stage '{stage.name}'", partial, error) from error
        except Exception as error:
            # Libraries in Rust and C++ (safetensors, sentencepiece, torch) have errors of their own for a full disk.
            if isinstance(error, TsugikiError) or not any(sign in str(error) for sign in _NO_SPACE_SIGNS):
                raise
            full = OSError(errno.ENOSPC, str(error))
            raise os_error(f"stage '{stage.name}'", partial, full) from error
        finally:
            tracker.terminate(status)
        for line in result.summary:
            self._announce(f"  {line}")
        self._announce(f"  {stage.name} done in {seconds:.1f} s -> {self.directory(stage.name)}")

    def _open_child(self, stage: Stage, decision: Decision, parent: Trackers) -> Trackers:
        known = self._run_ids.of(stage.name) if decision.action == "resume" else {}
        tracker = open_run(
            self._tracking, self.run_dir, stage.name, run_ids=known, parent_run_ids=parent.run_ids
        )
        self._run_ids.remember(stage.name, tracker.run_ids)
        if stage.config is not None:
            tracker.log_params(flatten(stage.config.model_dump(mode="json")))
        tracker.set_tags(job_tags())
        return tracker

    def _track_result(self, stage: Stage, result: StageResult, tracker: Trackers, seconds: float) -> None:
        directory = self.directory(stage.name)
        tracker.log_final({**result.metrics, "stage/seconds": seconds})
        for artifact in result.artifacts:
            if (directory / artifact).is_file():
                tracker.log_artifact(directory / artifact, str(Path(artifact).parent).strip("."))

    def prepare(self, stage: Stage, *, force: bool = False) -> Path:
        """Make a stage's partial directory as :meth:`run` would, for work that other jobs do ahead of it."""
        self._refuse_foreign([stage])
        decision = self.decide(stage, force=force)
        if decision.action != "skip":
            self._prepare_partial(stage, decision, self.key_parts(stage))
        return self.partial(stage.name)

    def _prepare_partial(
        self,
        stage: Stage,
        decision: Decision,
        parts: Mapping[str, str],
    ) -> None:
        partial = self.partial(stage.name)
        if partial.exists() and decision.action != "resume":
            if stage.precious and any((partial / "checkpoints").glob("iter_*")):
                self._set_aside(partial, stage.name)
            else:
                refuse_foreign_partial(partial, stage.name)
                remove_folder(partial)
        partial.mkdir(parents=True, exist_ok=True)
        # The key comes last: the other ranks of a job start as soon as they see it.
        write_json_atomically(partial / KEY_NAME, {"key": sha256_json(parts), "parts": dict(parts)})

    def _seal(
        self, stage: Stage, result: StageResult, parts: Mapping[str, str], started: str, seconds: float
    ) -> None:
        partial = self.partial(stage.name)
        # Of an earlier attempt that was killed while it sealed; the manifest would list it.
        remove_unfinished(partial)
        # Until the manifest is there everything stays that an interrupted stage needs to continue: hashing the
        # checkpoints of a large model takes minutes.
        outputs, digest = describe_outputs(partial, left_out=(KEY_NAME,))
        Manifest(
            stage=stage.name,
            key=sha256_json(dict(parts)),
            key_parts=dict(parts),
            config=None if stage.config is None else stage.config.model_dump(mode="json"),
            inputs={
                name.removeprefix("input "): value
                for name, value in parts.items()
                if name.startswith("input ")
            },
            outputs=outputs,
            digest=digest,
            versions=versions(),
            git_revision=git_revision(),
            counts=dict(result.counts),
            metrics=dict(result.metrics),
            started=started,
            seconds=round(seconds, 3),
        ).save(partial)
        shutil.rmtree(partial / WORK_NAME, ignore_errors=True)
        self._take_place(stage)

    def _link(self, stage: Stage, decision: Decision) -> None:
        """Take a stage that another run made."""
        parts = self.key_parts(stage)
        made = made_elsewhere(self.run_dir, stage.name, sha256_json(parts))
        if made is None:
            raise CheckpointError(
                f"stage '{stage.name}' changed in the run that made it",
                where=self.directory(stage.name),
                fix="run the same command again",
            )
        self._prepare_partial(stage, decision, parts)
        link_stage(made, self.partial(stage.name))
        self._take_place(stage)

    def _take_place(self, stage: Stage) -> None:
        """Let the partial folder, which is whole, take the stage's name."""
        partial, directory = self.partial(stage.name), self.directory(stage.name)
        if directory.exists():
            if stage.precious and Manifest.load(directory) is not None:
                self._set_aside(directory, stage.name)
            else:
                # Hours after the first look: somebody may have put a folder there meanwhile.
                refuse_foreign_stage(directory, stage.name)
                remove_folder(directory)
        partial.rename(directory)
        (directory / KEY_NAME).unlink(missing_ok=True)

    def _set_aside(self, directory: Path, name: str) -> None:
        for number in range(1, 10_000):
            target = self.run_dir / f"{name}.superseded-{number}"
            if not target.exists():
                directory.rename(target)
                self._announce(f"  earlier checkpoints kept in {target}; delete them when no longer needed")
                return

    def _join(self, stage: Stage) -> None:
        """A rank other than 0 of a job that Slurm or torchrun launched: work along, write no manifest."""
        deadline = time.monotonic() + _SECONDARY_RANK_WAIT_SECONDS
        while True:
            parts = self.key_parts(stage)
            manifest = self.complete(stage.name)
            if manifest is not None and manifest.key == sha256_json(parts):
                return
            if _partial_key(self.partial(stage.name)) == sha256_json(parts):
                break
            if time.monotonic() > deadline:
                raise TsugikiError(
                    f"rank 0 did not start stage '{stage.name}'",
                    where=self.partial(stage.name),
                    got=f"no key file within {_SECONDARY_RANK_WAIT_SECONDS:.0f} s",
                    fix="see the log of rank 0; is the run directory on a shared file system?",
                )
            time.sleep(0.5)
        stage.load()(stage.config, self.input_paths(stage), self.partial(stage.name), self._context)


def _rank() -> int:
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ:
        return int(os.environ.get("SLURM_PROCID", "0"))
    return 0


def _partial_key(partial: Path) -> str | None:
    try:
        return str(json.loads((partial / KEY_NAME).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # a damaged key is no key
        return None


def _difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    changed = [name for name in new if old.get(name) != new[name]]
    changed += [name for name in old if name not in new]
    return "changed: " + ", ".join(changed) if changed else "changed"
