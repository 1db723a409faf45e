"""Checkpoints: Megatron's distributed format, written by the training processes, complete or not at all.

    checkpoints/
      latest.json              {"iteration": 500}; moves only when iter_0000500 is complete
      iter_0000500/
        checkpoint.json        written last: marks the directory complete; sizes and sha256 of its files
        .metadata *.distcp     tensors and objects (torch.distributed.checkpoint)
        common.pt metadata.json

Tensors are stored whole and unpadded, under the names of GPTModel.sharded_state_dict(), so a
checkpoint loads under any layout. Megatron's own writer starts processes whose death it does not
notice; this one writes in the training process: a failed write is an error, never a wait.

An asynchronous save copies the state to host memory, returns, and writes from a thread with a gloo group of
its own. (torch's async_save would not copy: its stagers pass sharded tensors through as they are, and
training would change them while they are being written.) `checkpoint.json` follows when every rank has
written, at the end of a step.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.files import sha256_file, write_json_atomically
from tsugiki.pretrain.checkpoint.names import MARK_NAME, complete_checkpoints, iteration_name, iteration_of
from tsugiki.pretrain.checkpoint.state import TrainingState
from tsugiki.pretrain.checkpoint.writer import Write, reason
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu

LATEST_NAME = "latest.json"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that became the latest.

    Attributes:
        iteration: steps done.
        blocking_seconds: time that training stood still for it.
        seconds: from its begin to its end.
    """

    iteration: int
    blocking_seconds: float
    seconds: float


class CheckpointStore:
    """The checkpoints directory of a run.

    Args:
        directory: `train/checkpoints`.
        keep_last: newest checkpoints kept.
        keep_every: iterations at whose multiples checkpoints are kept for ever; None = none.
        asynchronous: write in the background.
        timeout: how long a rank that has written in the background waits for the others; None =
            torch's default.
    """

    def __init__(
        self,
        directory: Path,
        keep_last: int,
        keep_every: int | None,
        *,
        asynchronous: bool = False,
        timeout: timedelta | None = None,
    ) -> None:
        self.directory = directory
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.asynchronous = asynchronous
        self._timeout = timeout
        self._group: Any = None
        self._unfinished: Write | None = None

    def path(self, iteration: int) -> Path:
        """Directory of an iteration."""
        return self.directory / iteration_name(iteration)

    def iterations(self) -> list[int]:
        """Iterations with a complete mark, newest first.

        Raises:
            OSError: the directory is there and cannot be read.
        """
        return list(complete_checkpoints(self.directory))

    def save(
        self, iteration: int, state: TrainingState, common: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Begin a checkpoint; every rank calls this, and :meth:`finish` afterwards.

        Args:
            iteration: steps done.
            state: model and optimizer.
            common: what else is needed to go on (progress, generator states).
            facts: what checkpoint.json tells readers (tokens, layout).

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are intact.
        """
        assert self._unfinished is None, "the former checkpoint is finished first"
        started = time.monotonic()
        target = self.path(iteration)
        rank = torch.distributed.get_rank()
        problem = ""
        if rank == 0:
            try:
                _remove(target)
                target.mkdir(parents=True)
            except OSError as error:
                problem = str(error)
        _raise_anywhere(problem, target)
        if self.asynchronous and self._group is None:
            # All ranks write. The group connects each to the first only, which collects their plans: with all of
            # them at once a process would hold a socket for every other.
            os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
            self._group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        try:
            write = state.save(target, common, copy=self.asynchronous, group=self._group)
        except OSError as error:
            # Only this rank knows; it ends, and the launcher ends the others.
            raise _cannot_write(target, reason(error)) from error
        self._unfinished = Write(iteration, facts, target, write, started)
        if not self.asynchronous:
            self._unfinished.run()
        else:
            threading.Thread(target=self._unfinished.run, name="checkpoint", daemon=True).start()
        self._unfinished.blocking_seconds = time.monotonic() - started

    @property
    def unfinished(self) -> bool:
        """Whether a checkpoint was begun and not finished; the same on all ranks."""
        return self._unfinished is not None

    @property
    def writing(self) -> bool:
        """Whether this rank is still writing one."""
        return self._unfinished is not None and not self._unfinished.ended.is_set()

    def finish(self) -> SavedCheckpoint | None:
        """Wait until the checkpoint is written, then move `latest` to it; every rank calls this.

        Returns:
            The checkpoint, None when none was begun.

        Raises:
            CheckpointError: a rank could not write; earlier checkpoints are intact.
        """
        write, self._unfinished = self._unfinished, None
        if write is None:
            return None
        waiting = time.monotonic()
        write.ended.wait()
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, write.files)
        _raise_anywhere(write.problem, write.target)
        problem = ""
        if torch.distributed.get_rank() == 0:
            try:
                mark = {
                    "iteration": write.iteration,
                    **write.facts,
                    "files": {name: entry for part in gathered for name, entry in sorted(part.items())},
                }
                write_json_atomically(write.target / MARK_NAME, mark, indent=1, sort_keys=True)
                write_json_atomically(self.directory / LATEST_NAME, {"iteration": write.iteration}, indent=1)
            except OSError as error:
                problem = str(error)
        _raise_anywhere(problem, write.target)
        if torch.distributed.get_rank() == 0:
            self._prune(write.iteration)
        now = time.monotonic()
        return SavedCheckpoint(write.iteration, write.blocking_seconds + now - waiting, now - write.started)

    def _prune(self, newest: int) -> None:
        kept = [item for item in self.iterations() if not self._is_kept_for_ever(item)][: self.keep_last]
        for entry in self.directory.iterdir():
            iteration = iteration_of(entry.name)
            if iteration is None or iteration in kept or iteration > newest:
                continue
            if not self._is_kept_for_ever(iteration):
                _remove(entry)

    def _is_kept_for_ever(self, iteration: int) -> bool:
        every = self.keep_every
        return every is not None and iteration > 0 and iteration % every == 0

    def newest_complete(self, at_most: int | None = None) -> tuple[int | None, list[str]]:
        """The newest checkpoint whose files have the recorded sizes and checksums.

        Where none is as old as asked for, the oldest.

        Every rank calls this; the files are divided among them.

        Args:
            at_most: of this iteration or an earlier one; None = any.

        Returns:
            Its iteration (None when none was ever finished) and what was found wrong with newer ones.

        Raises:
            CheckpointError: there are checkpoints, but none is complete, or one cannot be read: to begin anew
                would throw away what was trained.
        """
        problems: list[str] = []
        listed: list[Any] = [[], "", False]
        if torch.distributed.get_rank() == 0:
            try:
                listed = [self.iterations(), "", (self.directory / LATEST_NAME).exists()]
            except OSError as error:
                listed[1] = str(error)
        torch.distributed.broadcast_object_list(listed, src=0)
        found, unreadable, ever_saved = listed
        if unreadable:
            raise _cannot_read(self.directory, unreadable)
        if at_most is not None:
            old = [item for item in found if item <= at_most]
            found = old + sorted(set(found) - set(old))
        for iteration in found:
            faults: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(faults, self._fault(iteration))
            if unreadable := next((reason for reason, damaged in faults if reason and not damaged), ""):
                raise _cannot_read(self.path(iteration), unreadable)
            fault = next((reason for reason, _ in faults if reason), None)
            if fault is None:
                return iteration, problems
            problems.append(f"checkpoint of step {iteration} is damaged ({fault})")
        if found or ever_saved:
            raise CheckpointError(
                "no checkpoint of this training is complete",
                where=self.directory,
                got="\n".join(problems) or f"{LATEST_NAME}, but no directory with a {MARK_NAME}",
                expected="a checkpoint whose files have the sizes and checksums of its checkpoint.json",
                fix="put back a copy of a checkpoint; to train anew from step 0, run the stage with --force, "
                "which sets these aside, or move this directory away",
            )
        return None, problems

    def _fault(self, iteration: int) -> tuple[str, bool]:
        """What is wrong with this rank's files of a checkpoint, "" = nothing; and whether that is damage,
        which lasts, or a file system that does not answer."""
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        directory = self.path(iteration)
        try:
            files = json.loads((directory / MARK_NAME).read_text(encoding="utf-8"))["files"]
            for number, (name, expected) in enumerate(sorted(files.items())):
                if number % size != rank:
                    continue
                path = directory / name
                if path.stat().st_size != expected["bytes"]:
                    return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}", True
                if sha256_file(path) != expected["sha256"]:
                    return f"{name} does not have its checksum", True
        except (
            FileNotFoundError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            return f"{type(error).__name__}: {error}", True
        except OSError as error:  # EIO, ESTALE, EACCES: the files may be complete
            return f"{type(error).__name__}: {error}", False
        return "", False


def _remove(checkpoint: Path) -> None:
    """Remove what is left of a checkpoint; of a link only the link goes, a file stays."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
    elif checkpoint.is_dir():
        # The mark goes first: a directory that is half deleted must not look complete.
        (checkpoint / MARK_NAME).unlink(missing_ok=True)
        shutil.rmtree(checkpoint, ignore_errors=True)


def _raise_anywhere(problem: str, where: Path) -> None:
    """Raise on every rank when one has a problem."""
    problems: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, problem)
    first = next((item for item in problems if item), None)
    if first:
        raise _cannot_write(where, first)


def _cannot_read(where: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        "cannot read a checkpoint",
        where=where,
        got=reason,
        fix="see to the file system or the permissions and run the same command again; nothing was changed",
    )


def _cannot_write(where: Path, reason: str) -> CheckpointError:
    # torch does not always pass on that the disk is full ("unexpected pos 704 vs 598").
    free = shutil.disk_usage(where if where.exists() else where.parent.parent).free
    return CheckpointError(
        "cannot write a checkpoint",
        where=where,
        got=f"{reason}\n{free:,} bytes are free there",
        fix="free disk space and run the same command again; the previous checkpoint is intact and training "
        "continues from it",
    )


def device_name() -> str:
    """What the run trains on, for checkpoint.json."""
    return torch.cuda.get_device_name() if has_gpu() else "cpu"
