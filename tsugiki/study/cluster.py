"""A study on Slurm: every trial a chain of jobs; where it takes stages of another trial, it waits for those jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from tsugiki.experiment.run.lock import locked
from tsugiki.slurm.config import ClusterConfig, load_cluster
from tsugiki.slurm.jobs import JobRecord
from tsugiki.slurm.submit import Submission, check_processes, submit_experiment
from tsugiki.study.local import write_study
from tsugiki.study.trials import Study, Trial

if TYPE_CHECKING:
    from tsugiki.pipeline import Experiment


def submit_to(
    study: Study, cluster: str, overrides: Sequence[str] = (), announce: Callable[[str], None] = print
) -> dict[str, Submission]:
    """Submit all trials to a site.

    Args:
        study: a checked study.
        cluster: name of a file in ``configs/clusters``, or the path of one.
        overrides: ``a.b=c`` for the cluster file.
        announce: receives lines for the console.

    Raises:
        ConfigError: the cluster file is wrong; or see :func:`submit_study`.
    """
    site, raw = load_cluster(cluster, overrides)
    for trial in study.trials.values():
        check_processes(cast("Experiment", trial.experiment), site, raw)
    return submit_study(study, site, announce)


def submit_study(
    study: Study, site: ClusterConfig, announce: Callable[[str], None] = print
) -> dict[str, Submission]:
    """Submit all trials; complete stages are skipped, and what waits or runs already is not submitted twice.

    Args:
        study: a checked study.
        site: where.
        announce: receives lines for the console.

    Returns:
        Trial -> what was submitted.

    Raises:
        ConfigError: see :func:`tsugiki.slurm.submit.submit`. Trials that were submitted before stay so.
        EnvironmentError_: Slurm's commands are missing or do not answer.
    """
    found: dict[str, Submission] = {}
    with locked(study.directory):
        write_study(study)
        for name, trial in study.trials.items():
            after = makers_jobs(study, trial)
            announce(f"{name}" + (f", after {', '.join(map(str, after))}" if after else ""))
            experiment = cast("Experiment", trial.experiment)
            found[name] = submit_experiment(experiment, site, announce=announce, after=after)
    return found


def makers_jobs(study: Study, trial: Trial) -> list[int]:
    """Jobs that make what a trial takes from others: of each other trial the last one, if it is not complete yet."""
    last: dict[str, int] = {}
    for stage, maker in study.makers[trial.name].items():
        other = study.trials[maker]
        if maker == trial.name or other.experiment.graph().complete(stage) is not None:
            continue
        jobs = [job.job_id for job in JobRecord.load(other.run_dir.resolve()).jobs if job.stage == stage]
        if jobs:
            last[maker] = jobs[-1]
    return sorted(last.values())
