"""Fills the checked-in ``*.sbatch`` files in for a site."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from slurm.config import ClusterConfig, ContainerConfig, Resources

HOME = Path(__file__).resolve().parent.parent
"""The checkout (or installation) whose scripts the jobs use."""

_HEADER = re.compile(r"(?:^#SBATCH .*\n)+", re.MULTILINE)
_SITE = re.compile(r"^# --- site.*?^# --- end of site\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Script:
    """A job's script.

    Attributes:
        stage: stage it runs.
        text: the whole bash script.
        arguments: what it is submitted with.
        links: how many times it is submitted, each after the one before.
    """

    stage: str
    text: str
    arguments: tuple[str, ...]
    links: int = 1


def render(
    cluster: ClusterConfig, stage: str, experiment: str, run_dir: Path, config: Path, chain: str
) -> Script:
    """The script of one stage.

    Args:
        cluster: the site.
        stage: name of the stage.
        experiment: name of the experiment, part of the job's name.
        run_dir: run directory, absolute.
        config: configuration the job reads, absolute.
        chain: name of this submission, within which restarts are counted.
    """
    training = stage == "train"
    template = (HOME / "slurm" / ("train.sbatch" if training else "stage.sbatch")).read_text(encoding="utf-8")
    resources = cluster.resources(stage)
    text = _HEADER.sub(lambda _: _header(cluster, resources, stage, experiment, run_dir), template, count=1)
    text = _SITE.sub(lambda _: _site(cluster, resources, run_dir, chain, training), text, count=1)
    arguments = (str(config),) if training else (stage, str(config))
    links = 1 if cluster.restart.requeue or not training else cluster.restart.links
    return Script(stage, text, arguments, links)


def _header(cluster: ClusterConfig, resources: Resources, stage: str, experiment: str, run_dir: Path) -> str:
    gpus = (
        f"{resources.gpu_type}:{resources.gpus_per_node}" if resources.gpu_type else resources.gpus_per_node
    )
    options: list[tuple[str, object]] = [
        ("job-name", f"{experiment}-{stage}"),
        ("partition", resources.partition),
        ("account", resources.account),
        ("qos", resources.qos),
        ("constraint", resources.constraint),
        ("reservation", resources.reservation),
        ("nodes", resources.nodes),
        ("ntasks-per-node", resources.processes_per_node),
        ("cpus-per-task", resources.cpus_per_task),
        ("gpus-per-node", gpus if resources.gpus_per_node else None),
        ("mem", resources.memory),
        ("time", resources.time_limit_minutes),
        ("exclude", ",".join(resources.exclude_nodes) or None),
        ("chdir", Path.cwd()),
        ("output", run_dir / "slurm" / "logs" / "%x-%j.log"),
        ("open-mode", "append"),
        ("signal", f"B:USR1@{cluster.restart.stop_seconds_before_limit}"),
    ]
    lines = [f"#SBATCH --{name}={_quoted(str(value))}" for name, value in options if value is not None]
    lines.append("#SBATCH --requeue" if cluster.restart.requeue else "#SBATCH --no-requeue")
    if resources.exclusive:
        lines.append("#SBATCH --exclusive")
    lines += [f"#SBATCH {flag}" for flag in resources.sbatch_flags]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    """A value as sbatch reads it in an #SBATCH line, where quotes work as in the shell."""
    return value if re.fullmatch(r"[\w@%+=:,./\[\]&|*-]+", value) else '"' + value.replace('"', r"\"") + '"'


def _site(cluster: ClusterConfig, resources: Resources, run_dir: Path, chain: str, training: bool) -> str:
    environment, restart = cluster.environment, cluster.restart
    lines = [f"# --- site: {cluster.name}"]
    if environment.modules:
        lines.append(f"module load {shlex.join(environment.modules)}")
    if environment.conda is not None:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(environment.conda)}"]
    if environment.venv is not None:
        lines.append(f"source {_expandable(environment.venv + '/bin/activate')}")
    lines += environment.setup
    lines += [f"export {name}={_expandable(str(value))}" for name, value in environment.variables.items()]
    if environment.node_scratch is not None:
        # TMPDIR is made on every node by the processes; the batch script's own node is not enough.
        lines.append(f"export TSUGIKI_NODE_SCRATCH={_expandable(environment.node_scratch)}")
    prefix, srun_flags = _container(environment.container, resources)
    lines += [
        f"TSUGIKI_COMMAND=({_command(cluster)})",
        f"CONTAINER=({' '.join(map(_expandable, prefix))})",
        f"SRUN_FLAGS=({' '.join(map(_expandable, [*srun_flags, *resources.srun_flags]))})",
        f"export TSUGIKI_HOME={shlex.quote(str(HOME))}",
        f"export TSUGIKI_RUN_DIR={shlex.quote(str(run_dir))}",
        f"export TSUGIKI_CHAIN={shlex.quote(chain)}",
        f"export TSUGIKI_REQUEUE={int(restart.requeue)}",
        f"export TSUGIKI_MAX_IDLE_RESTARTS={restart.maximum_restarts_without_progress}",
        f"export TSUGIKI_EXCLUDE_AFTER={restart.exclude_node_after_failures}",
    ]
    if training:
        lines += [
            "# shellcheck disable=SC2016  # expanded on the node",
            f"export TSUGIKI_NODE_CHECK={shlex.quote(restart.node_check or '')}",
        ]
    return "\n".join([*lines, "# --- end of site", ""])


def _command(cluster: ClusterConfig) -> str:
    environment = cluster.environment
    if environment.command is not None:
        return shlex.join(shlex.split(environment.command))
    own = environment.conda is None and environment.venv is None and environment.container is None
    return shlex.join([sys.executable if own and not environment.modules else "python", "-m", "tsugiki"])


def _container(container: ContainerConfig | None, resources: Resources) -> tuple[list[str], list[str]]:
    """Prefix of every process, and flags of srun."""
    if container is None:
        return [], []
    if container.kind == "pyxis":
        mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
        return [], [f"--container-image={container.image}", *mounts, *container.flags]
    prefix = ["apptainer", "exec", *(["--nv"] if resources.gpus_per_node else [])]
    for mount in container.mounts:
        prefix += ["--bind", mount]
    return [*prefix, *container.flags, container.image], []


def _expandable(value: str) -> str:
    """A value in double quotes: ``$NAMES`` are expanded on the node, nothing else is."""
    return '"' + re.sub(r'(["\\`])|\$(?![A-Za-z_{])', lambda found: "\\" + found[0], value) + '"'
