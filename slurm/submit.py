"""``tsugiki submit``: the experiment's stages as jobs that wait for each other."""

from __future__ import annotations

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tsugiki.experiment.config.load import RawConfig
from tsugiki.experiment.config.strict import dump_yaml
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.graph import Graph
from tsugiki.experiment.run.shared import shared_stages
from tsugiki.pretrain.planning.divisions import batch_problems, process_problems, refuse
from tsugiki.slurm import client
from tsugiki.slurm.config import OVERRIDE_PREFIX, ClusterConfig, load_cluster, split_overrides
from tsugiki.slurm.jobs import FOLDER, Job, JobRecord, locked
from tsugiki.slurm.scripts import Script, render

if TYPE_CHECKING:
    from tsugiki.pipeline import Experiment


@dataclass(frozen=True)
class Plan:
    """What a submission does with one stage.

    Attributes:
        stage: name of the stage.
        action: ``skip`` (complete), ``keep`` (its jobs wait or run already) or ``submit``.
        reason: why.
        script: script to submit, for ``submit``.
        kept: last job to wait for, for ``keep``.
        array: whether a job array goes first.
    """

    stage: str
    action: str
    reason: str
    script: Script | None = None
    kept: int | None = None
    array: bool = False


@dataclass
class Submission:
    """What was, or with ``dry_run`` would be, submitted.

    Attributes:
        run_dir: run directory, absolute.
        plans: one for each stage, in order.
        jobs: jobs submitted now.
    """

    run_dir: Path
    plans: list[Plan]
    jobs: list[Job] = field(default_factory=list)


def submit(
    config_path: Path,
    cluster: str,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    announce: Callable[[str], None] = print,
    *,
    until: str | None = None,
) -> Submission:
    """Submit an experiment as chained jobs.

    Complete and unchanged stages are skipped, stages whose jobs wait or run already are left alone.

    Args:
        config_path: YAML file of the experiment.
        cluster: name of a file in ``configs/clusters``, or the path of one.
        overrides: ``a.b=c`` for the experiment, ``cluster.a.b=c`` for the cluster file.
        dry_run: print every script and what Slurm would say; submit nothing.
        announce: receives lines for the console.
        until: last stage to submit, where the site does not let all jobs wait at once; null = all.

    Raises:
        ConfigError: a configuration is wrong, Slurm refuses a job (its message is included), or jobs of
            this run with another configuration wait or run.
        EnvironmentError_: Slurm's commands are missing or do not answer.
    """
    from tsugiki.pipeline import load_experiment

    ours, theirs = split_overrides(overrides)
    experiment = load_experiment(config_path, ours)
    site, raw = load_cluster(cluster, theirs)
    check_processes(experiment, site, raw)
    return submit_experiment(experiment, site, dry_run=dry_run, announce=announce, until=until)


def check_processes(experiment: Experiment, site: ClusterConfig, raw: RawConfig) -> None:
    """The processes of the training job must be a multiple of the model-parallel size.

    Raises:
        ConfigError: they are not.
    """
    train = experiment.config.train
    resources = site.resources("train")
    shape = (
        f"{resources.processes} processes = {resources.nodes} nodes x {resources.processes_per_node} per node"
    )
    where = str(raw.mark(("train", "nodes"))).replace("--set ", f"--set {OVERRIDE_PREFIX}")
    fix = "set train.parallel.data: null to use what is there, or --set cluster.train.nodes=N (gpus_per_node)"
    refuse(
        [
            replace(problem, where=where, got=shape, fix=fix)
            for problem in process_problems(train.parallel, resources.processes)
        ]
    )
    refuse(
        [
            replace(problem, where=f"{problem.where}, {where}")
            for problem in batch_problems(train, resources.processes // train.parallel.model_processes)
        ]
    )


def submit_experiment(
    experiment: Experiment,
    site: ClusterConfig,
    *,
    dry_run: bool = False,
    announce: Callable[[str], None] = print,
    until: str | None = None,
    after: Sequence[int] = (),
) -> Submission:
    """:func:`submit` for an experiment and a site that are loaded.

    Args:
        experiment: what to submit.
        site: where.
        dry_run: as for :func:`submit`.
        announce: likewise.
        until: likewise.
        after: jobs of other runs that make stages which this one takes; its first job waits for them.
    """
    run_dir = experiment.run_dir.resolve()
    graph = experiment.graph(announce=announce)
    digest = hashlib.sha256(dump_yaml(experiment.config).encode()).hexdigest()
    config = run_dir / FOLDER / "config.yaml"
    chain = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{digest[:6]}"
    if dry_run:
        record = JobRecord.load(run_dir)
        plans = list(_plan(graph, until, record, site, experiment, run_dir, config, chain))
        _show(Submission(run_dir, plans), graph, site, experiment, announce)
        return Submission(run_dir, plans)
    with locked(run_dir):
        record = JobRecord.load(run_dir)
        plans = list(_plan(graph, until, record, site, experiment, run_dir, config, chain))
        if any(plan.action == "keep" for plan in plans) and record.configuration != digest:
            kept = ", ".join(f"{plan.stage} ({plan.kept})" for plan in plans if plan.action == "keep")
            raise ConfigError(
                "jobs of this run with another configuration wait or run",
                where=run_dir, got=kept, fix=f"`tsugiki cancel {experiment.run_dir}` first, or change `name`",
            )  # fmt: skip
        submission = Submission(run_dir, plans)
        if any(plan.action == "submit" for plan in plans):
            saved = run_dir / "config.yaml"
            if not saved.is_file() or saved.read_text(encoding="utf-8", errors="replace") != dump_yaml(
                experiment.config
            ):
                with graph.lock():  # it belongs to whoever works in the run directory now
                    experiment.save_config()
            (run_dir / FOLDER / "logs").mkdir(parents=True, exist_ok=True)
            config.write_text(dump_yaml(experiment.config), encoding="utf-8")
            arrays = _arrays(graph, site, experiment.config.name, run_dir)
            submission.jobs = _submit_all(plans, record, run_dir, chain, site.name, digest, arrays, after)
    _summarise(submission, experiment, announce)
    return submission


def _plan(
    graph: Graph,
    until: str | None,
    record: JobRecord,
    site: ClusterConfig,
    experiment: Experiment,
    run_dir: Path,
    config: Path,
    chain: str,
) -> Iterator[Plan]:
    # Slurm first: a job that ends between the two questions has completed its stage by the second.
    states = client.states(job.job_id for job in record.jobs) if record.jobs and client.available() else {}
    stages = graph.select(None, until)
    decisions = {decision.stage: decision for decision in graph.preview(stages)}
    upstream_changes = False
    # One job at a time works in a run directory, so the stages are one chain.
    for stage in stages:
        jobs = [job for job in record.jobs if job.stage == stage.name]
        live = [job for job in jobs if job.job_id in states and states[job.job_id].live]
        if live:
            listing = ", ".join(f"{job.job_id} {states[job.job_id].state}" for job in live)
            upstream_changes = True
            yield Plan(stage.name, "keep", f"submitted already: {listing}", kept=live[-1].job_id)
            continue
        decision = decisions[stage.name]
        if decision.action == "skip" and not upstream_changes:
            yield Plan(stage.name, "skip", decision.reason)
            continue
        upstream_changes = True
        array = stage.name in site.arrays and stage.name not in shared_stages(run_dir)  # linked, not made
        script = render(site, stage.name, experiment.config.name, run_dir, config, chain)
        yield Plan(stage.name, "submit", decision.reason, script, array=array)


def _submit_all(
    plans: Sequence[Plan],
    record: JobRecord,
    run_dir: Path,
    chain: str,
    cluster: str,
    digest: str,
    arrays: Callable[[str, int | None], int | None],
    others: Sequence[int] = (),
) -> list[Job]:
    """Submit in order, on record at once; when Slurm refuses one, the ones before it are cancelled again."""
    submitted: list[Job] = []
    previous: int | None = None
    first = ":".join(map(str, others)) or None

    def add(number: int, stage: str, link: int = 0, kind: Literal["stage", "array"] = "stage") -> int:
        submitted.append(
            Job(
                job_id=number, stage=stage, link=link, kind=kind, after=[previous] if previous else list(others),
                chain=chain, cluster=cluster, submitted=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )  # fmt: skip
        # A stage's earlier jobs have ended; the record keeps those that matter now.
        replaced = {job.stage for job in submitted}
        kept = [job for job in record.jobs if job.stage not in replaced]
        JobRecord(configuration=digest, jobs=kept + submitted).save(run_dir)
        return number

    try:
        for plan in plans:
            if plan.kept is not None:
                previous = plan.kept
            if plan.script is None:
                continue
            if plan.array and (number_or_none := arrays(plan.stage, previous)) is not None:
                previous = add(number_or_none, plan.stage, kind="array")
            path = run_dir / FOLDER / f"{plan.stage}.sbatch"
            path.write_text(plan.script.text, encoding="utf-8")
            for link in range(plan.script.links):
                flags = _dependency(previous or first, link)
                number = client.sbatch(
                    path, plan.script.arguments, flags, what=f"job of stage '{plan.stage}'"
                )
                previous = add(number, plan.stage, link)
    except BaseException:
        client.cancel([job.job_id for job in submitted])
        record.save(run_dir)
        raise
    return submitted


def _arrays(
    graph: Graph, site: ClusterConfig, experiment: str, run_dir: Path
) -> Callable[[str, int | None], int | None]:
    """Submits the array of a stage; gives its number, None when all of its tasks are done."""

    def start(stage: str, after: int | None) -> int | None:
        from tsugiki.slurm.arrays import stage_array

        return stage_array(graph, site, stage, experiment, run_dir, after).submit()

    return start


def _dependency(previous: int | str | None, link: int) -> list[str]:
    if previous is None:
        return []
    # A later link starts whatever became of the one before; everything else needs success. Without
    # --kill-on-invalid-dep a job whose predecessor failed would wait for ever.
    return [f"--dependency={'afterany' if link else 'afterok'}:{previous}", "--kill-on-invalid-dep=yes"]


def _show(
    submission: Submission,
    graph: Graph,
    site: ClusterConfig,
    experiment: Experiment,
    announce: Callable[[str], None],
) -> None:
    """The scripts as they would be submitted, and what Slurm would say."""
    previous: str | None = None
    can_ask = client.available()
    for plan in submission.plans:
        if plan.script is None:
            announce(f"# {plan.stage}: {plan.action}, {plan.reason}")
            previous = str(plan.kept) if plan.kept is not None else previous
            continue
        announce(f"# {plan.stage}: submit, {plan.reason}")
        if plan.array:
            text = _array_script(graph, site, experiment.config.name, submission.run_dir, plan.stage)
            announce(text)
            if can_ask:
                announce("# Slurm says: " + _ask(text, ()))
            previous = f"<{plan.stage} array>"
        path = submission.run_dir / FOLDER / f"{plan.stage}.sbatch"
        for link in range(plan.script.links):
            announce(
                "# " + " ".join(["sbatch", *_dependency(previous, link), str(path), *plan.script.arguments])
            )
            previous = f"<{plan.stage}>" if link == 0 else f"<{plan.stage} {link + 1}>"
        announce(plan.script.text)
        if can_ask:
            announce("# Slurm says: " + _ask(plan.script.text, plan.script.arguments))
    if not can_ask:
        announce("# no Slurm on this machine: the scripts were not tested with `sbatch --test-only`")


def _array_script(graph: Graph, site: ClusterConfig, experiment: str, run_dir: Path, stage: str) -> str:
    """The array's script as it would be, planned in a folder that is thrown away."""
    from tsugiki.slurm.arrays import stage_array

    with tempfile.TemporaryDirectory() as folder:
        executor = stage_array(graph, site, stage, experiment, run_dir, plan_only=Path(folder))
        return executor.describe().replace(folder, str(run_dir))


def _ask(text: str, arguments: Sequence[str]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        accepted, message = client.test_only(Path(file.name), arguments)
    return message if accepted else f"REFUSED: {message}"


def _summarise(submission: Submission, experiment: Experiment, announce: Callable[[str], None]) -> None:
    shown = experiment.run_dir
    for plan in submission.plans:
        mine = [str(job.job_id) for job in submission.jobs if job.stage == plan.stage]
        text = f"job {' -> '.join(mine)}" if mine else f"{plan.action}, {plan.reason}"
        announce(f"  {plan.stage:<10}{text}")
    if not submission.jobs:
        announce("nothing to submit")
    announce(f"follow:  tsugiki status {shown}")
    if submission.jobs:
        # The logs by name: they do not exist yet.
        logs = [f"{job.stage}-{job.job_id}" for job in submission.jobs if job.kind == "stage"]
        names = logs[0] if len(logs) == 1 else f"{{{','.join(logs)}}}"
        prefix = shlex.quote(f"{shown}/{FOLDER}/logs/{experiment.config.name}-")
        announce(f"         tail -F {prefix}{names}.log 2>/dev/null")
    announce(f"stop:    tsugiki cancel {shown}")
