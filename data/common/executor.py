"""Runs datatrove pipelines in local processes, resumable by task.

datatrove's ``LocalPipelineExecutor`` waits for ever when one of its workers is killed (its pool
replaces the worker and loses the task), prints tracebacks, and starts a manager process per run.
:class:`ProcessExecutor` keeps its contract (a list of steps, completion markers and statistics per
task under ``logging_dir``) and runs tasks on a ``ProcessPoolExecutor``, which reports a dead worker.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, TextIO

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from tsugiki.experiment.errors import DataError, EnvironmentError_, TsugikiError
from tsugiki.experiment.parent import end_worker_with_pool
from tsugiki.experiment.progress import Progress

INLINE_BELOW_BYTES = 4_000_000
"""Inputs below this are processed in this process."""

TaskDone = Callable[[int], None]


class ProcessExecutor(PipelineExecutor):
    """Runs every incomplete task of a pipeline; with one worker, in this process.

    Args:
        pipeline: datatrove steps; each task gets its own copy.
        tasks: number of tasks.
        workers: tasks at a time.
        logging_dir: where completion markers, statistics and logs of the tasks go.
        label: what the phase is called in errors.
    """

    def __init__(
        self,
        pipeline: Sequence[PipelineStep],
        tasks: int,
        workers: int,
        logging_dir: Path,
        label: str,
    ) -> None:
        super().__init__(list(pipeline), str(logging_dir))
        self.pipeline: list[PipelineStep] = list(pipeline)
        self.tasks = tasks
        self.workers = workers
        self.label = label

    @property
    def world_size(self) -> int:
        """Number of tasks."""
        return self.tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """One machine, as datatrove's local executor says it."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )

    def run(self, on_task_done: TaskDone | None = None, share: tuple[int, int] = (0, 1)) -> None:
        """Run what is incomplete.

        Args:
            on_task_done: hears the rank of each finished task.
            share: ``(k, n)``: only tasks k, k + n, k + 2n …

        Raises:
            DataError: a task failed for a reason of its data.
            EnvironmentError_: the disk is full, or a worker process was killed.
        """
        mine = range(share[0], self.tasks, share[1])
        ranks = [rank for rank in self.get_incomplete_ranks() if rank in mine]
        finished = on_task_done or (lambda rank: None)
        for rank in sorted(set(mine) - set(ranks)):
            finished(rank)
        if not ranks:
            return
        workers = min(self.workers, len(ranks))
        if workers <= 1:
            steps: list[PipelineStep] = self.pipeline
            for rank in ranks:
                self.pipeline = deepcopy(steps)
                _run_task(self, rank)
                finished(rank)
            self.pipeline = steps
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tsugiki.data.common.executor", "tsugiki.data.passes.filter"])
        with ProcessPoolExecutor(workers, mp_context=context, initializer=end_worker_with_pool) as pool:
            futures = {pool.submit(_run_task, self, rank): rank for rank in ranks}
            try:
                self._collect(futures, finished)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _collect(self, futures: dict[Future[None], int], finished: TaskDone) -> None:
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda item: futures[item]):
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise EnvironmentError_(
                        f"a worker process died during {self.label}",
                        got="killed from outside, most often because memory ran out",
                        fix="run again with fewer `workers`: finished shards are kept",
                    ) from error
                finished(futures[future])

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        """One task: pipe the steps, write statistics, then the completion marker."""
        if self.is_rank_completed(rank):
            return PipelineStats()
        self._set_distributed_environment(node_rank)
        logger.remove()
        with self.logging_dir.open(f"logs/task_{rank:05d}.log", "w") as log:
            handler = logger.add(_quietly(log), colorize=False, level="INFO")
            try:
                data: Any = None
                for step in self.pipeline:
                    data = step(data, rank, self.world_size)
                if data:
                    deque(data, maxlen=0)
                stats = PipelineStats(self.pipeline)
                with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
                    stats.save_to_disk(file)
                self.mark_rank_as_completed(rank)
            except Exception as error:
                logger.opt(exception=error).error("task failed")
                raise
            finally:
                logger.complete()
                logger.remove(handler)
        return stats


def _run_task(executor: ProcessExecutor, rank: int) -> None:
    """Run one task; whatever goes wrong leaves as an error a user can read."""
    try:
        executor._run_for_rank(rank)
    except TsugikiError:
        raise
    except OSError as error:
        raise EnvironmentError_(
            f"cannot read or write during {executor.label}",
            where=error.filename,
            got=error.strerror or error,
            fix="free disk space or correct the permissions, then run again: finished shards are kept",
        ) from error
    except Exception as error:
        raise DataError(
            f"{executor.label} failed",
            where=f"task {rank} of {executor.tasks}",
            got=f"{type(error).__name__}: {error}",
            fix=f"the traceback is in {_log_name(executor, rank)}",
        ) from error


def _quietly(log: TextIO) -> Callable[[str], None]:
    """Writes to a log; on a full disk the task's own error matters, not that it cannot be logged."""

    def write(message: str) -> None:
        with suppress(OSError):
            log.write(message)
            log.flush()

    return write


def _log_name(executor: ProcessExecutor, rank: int) -> str:
    return f"{executor.logging_dir.path}/logs/task_{rank:05d}.log"


def available_workers(requested: int, input_bytes: int) -> int:
    """Workers worth starting: small inputs run in this process, as starting one costs a second."""
    if input_bytes < INLINE_BELOW_BYTES:
        return 1
    return max(1, min(requested, os.cpu_count() or 1))


class ShardProgress(Progress):
    """Progress over shards in megabytes of input, with documents and documents per second.

    Args:
        label: what is being done.
        megabytes: size of each shard, by rank.
        documents: documents of a finished shard.
    """

    def __init__(self, label: str, megabytes: Sequence[float], documents: Callable[[int], int]) -> None:
        super().__init__(label, sum(megabytes), "MB")
        self._megabytes, self._documents = megabytes, documents
        self._count = 0

    def finished(self, rank: int) -> None:
        """A shard is done."""
        self._count += self._documents(rank)
        rate = self._count / max(time.monotonic() - self._start, 1e-9)
        self.advance(self._megabytes[rank], f"{self._count:,} docs  {rate:,.0f} docs/s")


class Stopwatch:
    """Wall-clock seconds of named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def measure(self, name: str, start: float) -> None:
        """Add the time since ``start`` (``time.monotonic()``) to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
