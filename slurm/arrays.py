"""Job arrays through datatrove's Slurm executor, told about the site by the same cluster file.

The first pass of the corpus stage, which reads, extracts and filters every shard on its own, is nearly all of
its work. It runs as an array whose tasks leave datatrove's completion markers in the stage's own working
folder; the stage's job then finds the pass done and goes on with what needs all shards at once.

The tokens stage encodes shards that are not known before the corpus is complete: each of its array tasks
opens the experiment when it starts and takes its share of them, with markers in the same way.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.executor.base import DistributedEnvVars
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from tsugiki.slurm import client
from tsugiki.slurm.config import ArrayConfig, ClusterConfig
from tsugiki.slurm.jobs import FOLDER, locked
from tsugiki.slurm.scripts import (
    container_prefix,
    environment_lines,
    expandable,
    header_lines,
    log_pattern,
    python_command,
    sbatch_options,
)

if TYPE_CHECKING:
    from tsugiki.experiment.run.graph import Graph

_LAUNCHER = "launch_pickled_pipeline"


class SiteExecutor(SlurmPipelineExecutor):
    """Runs a datatrove pipeline as a job array on a site.

    Tasks that completed in an earlier attempt are not run again. Differs from its base in that resources,
    environment and container come from the cluster file, that Slurm's refusal is an error with its message,
    and that no further job is started to merge statistics.

    Args:
        site: the cluster file.
        stage: stage whose resources the tasks get.
        array: how many tasks, and how many at a time.
        pipeline: datatrove steps; what they import must be importable on the nodes.
        tasks: pipeline tasks (shards); several share an array task when there are more than ``array.tasks``.
        logging_dir: where completion markers, statistics and logs go; on a shared file system.
        job_name: name of the jobs.
        log: file for the output of the array tasks, with ``%A`` and ``%a``; null = below ``logging_dir``.
        after: job that must succeed first.
        skip_completed: leave out pipeline tasks that have a completion marker; False where the steps
            themselves know what is done.
    """

    def __init__(
        self,
        site: ClusterConfig,
        stage: str,
        array: ArrayConfig,
        pipeline: Sequence[PipelineStep],
        tasks: int,
        logging_dir: Path,
        *,
        job_name: str,
        log: Path | None = None,
        after: int | None = None,
        skip_completed: bool = True,
    ) -> None:
        resources = site.resources(stage)
        super().__init__(
            list(pipeline),
            tasks,
            time=str(resources.time_limit_minutes),
            partition=resources.partition or "",
            cpus_per_task=resources.cpus_per_task or 1,
            workers=array.maximum_running or -1,
            job_name=job_name,
            qos=resources.qos or "",
            depends_job_id=str(after) if after is not None else None,
            logging_dir=str(logging_dir),
            requeue=site.restart.requeue,
            requeue_signals=("SIGUSR1",) if site.restart.requeue else None,
            job_id_retriever=str.strip,
            max_array_size=array.tasks,
            skip_completed=skip_completed,
        )
        self._site, self._stage, self._log = site, stage, log
        self.tasks_per_job = math.ceil(max(len(self.get_incomplete_ranks()), 1) / array.tasks)

    def launch_merge_stats(self) -> None:
        """Nothing: the stage adds its own statistics up."""

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """What steps may ask for. A task has one node: no need of `scontrol`, which a container lacks."""
        return DistributedEnvVars(
            datatrove_node_ips=os.environ["SLURM_NODELIST"],
            datatrove_cpus_per_task=str(self.cpus_per_task),
            datatrove_mem_per_cpu=str(self.mem_per_cpu_gb),
            datatrove_gpus_on_node="0",
            datatrove_executor="SLURM",
        )

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Options of the array job, from the cluster file."""
        resources = self._site.resources(self._stage)
        options: dict[str, Any] = dict(sbatch_options(resources, self.job_name))
        base = super().get_sbatch_args(max_array)
        options |= {
            "array": base["array"],
            "parsable": "",
            "output": log_pattern(self._log or base["output"]),
        }
        options |= {"ntasks-per-node": 1, "nodes": 1}
        # datatrove requeues the task on this signal
        options |= {"requeue": "", "signal": "USR1@60"} if self.requeue else {"no-requeue": ""}
        if self.depends_job_id:
            options["kill-on-invalid-dep"] = "yes"
        return options

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """The sbatch script of the array."""
        resources = self._site.resources(self._stage)
        prefix, srun_flags = container_prefix(self._site.environment.container, resources)
        _, _, argument = run_script.partition(f"{_LAUNCHER} ")
        flags = ["--export=ALL", "--ntasks=1", f"--cpus-per-task={self.cpus_per_task}"]
        flags += [*srun_flags, *resources.srun_flags]
        python = [*prefix, *python_command(self._site), "-P", "-m", f"datatrove.tools.{_LAUNCHER}"]
        lines = ["#!/usr/bin/env bash", *header_lines(sbatch_args, resources), ""]
        lines += environment_lines(self._site.environment)
        # The exit status of a task decides whether what depends on the array may start.
        lines.append(f"exec srun {' '.join(map(expandable, [*flags, *python, argument.strip()]))}")
        return "\n".join(lines) + "\n"

    def describe(self) -> str:
        """The script, with the array as it would be submitted."""
        jobs = math.ceil(max(len(self.get_incomplete_ranks()), 1) / self.tasks_per_job)
        script = f"{_LAUNCHER} {self.logging_dir.resolve_paths('executor.pik')}"
        return self.get_launch_file_contents(self.get_sbatch_args(jobs), script)

    def submit(self) -> int | None:
        """Submit what is incomplete; the array's job number, None when nothing is.

        Raises:
            ConfigError: Slurm refused.
        """
        logger.disable("datatrove")
        try:
            with client.outside_of_jobs():
                self.launch_job()
        except subprocess.CalledProcessError as error:
            script = Path(self.logging_dir.resolve_paths("launch_script.slurm"))
            _, message = client.test_only(script, ())
            raise client.refusal(script, message, f"array of stage '{self._stage}'") from error
        finally:
            logger.enable("datatrove")
        return None if self.job_id in (None, -1) else int(str(self.job_id).split(";")[0])


class EncodeShare(PipelineStep):
    """Task k of n of the tokens stage's array: encodes the shards k, k + n, k + 2n … that have no marker yet.

    Args:
        config_path: configuration of the experiment.
    """

    name = "encode share"
    type = "tokens"

    def __init__(self, config_path: Path) -> None:
        super().__init__()
        self.config_path = config_path

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Encode the share; yields nothing."""
        from tsugiki.data.tokenise.tokenise_shards import Tokenisation
        from tsugiki.pipeline import load_experiment

        experiment = load_experiment(self.config_path)
        graph = experiment.graph(announce=lambda line: None)
        stage = graph.stages["tokens"]
        inputs = {name: path.resolve() for name, path in graph.input_paths(stage).items()}
        with locked(experiment.run_dir):  # the tasks start together, and one of them makes the folder
            if graph.decide(stage).action == "skip":
                return
            partial = graph.prepare(stage).resolve()
            tokenisation = Tokenisation.open(experiment.config.tokens, inputs, partial)
        tokenisation.run(int(os.environ.get("SLURM_CPUS_PER_TASK", "1")), (rank, world_size))
        yield from ()


def stage_array(
    graph: Graph,
    site: ClusterConfig,
    stage: str,
    experiment: str,
    run_dir: Path,
    after: int | None = None,
    plan_only: Path | None = None,
) -> SiteExecutor:
    """The array that goes before the job of a stage: ``corpus`` or ``tokens``.

    Args:
        graph: stages of the experiment.
        site: the cluster file, which has an array for the stage.
        stage: the stage.
        experiment: name of the experiment, part of the job's name.
        run_dir: run directory, absolute; its ``slurm/config.yaml`` is what the tasks of ``tokens`` read.
        after: job that must succeed first.
        plan_only: folder to use instead of the run directory, for a look at the script.
    """
    array, name = site.arrays[stage], f"{experiment}-{stage}-array"  # type: ignore[index]
    log = run_dir / FOLDER / "logs" / f"{name}-%A_%a.log"
    if stage == "tokens":
        step: PipelineStep = EncodeShare(run_dir / FOLDER / "config.yaml")
        folder = (plan_only or run_dir) / FOLDER / f"{stage}-array"
        return SiteExecutor(
            site, stage, array, [step], array.tasks, folder,
            job_name=name, log=log, after=after, skip_completed=False,
        )  # fmt: skip
    from tsugiki.data.passes.job_array import filter_pass

    node: Any = graph.stages[stage]
    partial = graph.prepare(node).resolve() if plan_only is None else plan_only / f"{stage}.partial"
    partial.mkdir(exist_ok=True)
    work = filter_pass(node.config, partial)
    return SiteExecutor(
        site, stage, array, [work.step], work.tasks, work.logging_dir, job_name=name, log=log, after=after
    )
