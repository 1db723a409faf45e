"""Fills the checked-in ``*.sbatch`` files in for a site."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tsugiki.experiment.errors import ConfigError
from tsugiki.slurm.config import (
    ROLES,
    ClusterConfig,
    ContainerConfig,
    EnvironmentConfig,
    Resources,
    control_character,
)

SCRIPTS = Path(__file__).resolve().parent
"""Folder of the scripts the jobs use, of the checkout or installation that submits."""

_FIELDS = {"job-name": "name", "chdir": "working directory", "output": "run_dir", "mem": "memory",
           "exclude": "exclude_nodes", "gpus-per-node": "gpu_type"}  # fmt: skip
"""Option of sbatch -> what users call the value, where the names differ."""
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
    training = ROLES.get(stage) == "train"
    template = (SCRIPTS / ("train.sbatch" if training else "stage.sbatch")).read_text(encoding="utf-8")
    template = template.replace('run_stage train "$@"', f'run_stage {stage} "$@"')
    resources = cluster.resources(stage)
    text = _HEADER.sub(lambda _: _header(cluster, resources, stage, experiment, run_dir), template, count=1)
    text = _SITE.sub(lambda _: _site(cluster, resources, run_dir, chain, training), text, count=1)
    arguments = (str(config),) if training else (stage, str(config))
    links = 1 if cluster.restart.requeue or not training else cluster.restart.links
    return Script(stage, text, arguments, links)


def sbatch_options(resources: Resources, job_name: str) -> dict[str, str]:
    """The options of sbatch that resources stand for, without the flags given verbatim."""
    gpus = ":".join(filter(None, [resources.gpu_type, str(resources.gpus_per_node)]))
    options: dict[str, object] = {
        "job-name": job_name,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "reservation": resources.reservation,
        "nodes": resources.nodes + resources.spare_nodes,
        "ntasks-per-node": resources.processes_per_node,
        "cpus-per-task": resources.cpus_per_task,
        "gpus-per-node": gpus if resources.gpus_per_node else None,
        "mem": resources.memory,
        "time": resources.time_limit_minutes,
        "exclude": ",".join(resources.exclude_nodes) or None,
        "chdir": Path.cwd(),
        "open-mode": "append",
        "exclusive": "" if resources.exclusive else None,
        # the loss of one node must not end the job that has another
        "no-kill": "" if resources.spare_nodes else None,
    }
    return {name: _quoted(str(value)) for name, value in options.items() if value is not None}


def _header(cluster: ClusterConfig, resources: Resources, stage: str, experiment: str, run_dir: Path) -> str:
    options = sbatch_options(resources, f"{experiment}-{stage}")
    options["output"] = log_pattern(run_dir / "slurm" / "logs" / "%x-%j.log")
    options["signal"] = f"B:USR1@{cluster.restart.stop_seconds_before_limit}"
    options["requeue" if cluster.restart.requeue else "no-requeue"] = ""
    return "\n".join([*header_lines(options, resources), ""])


def header_lines(options: Mapping[str, object], resources: Resources) -> list[str]:
    """``#SBATCH`` lines of options, an empty value meaning a flag, and of the flags given verbatim.

    Raises:
        ConfigError: a value with a newline or another control character, which would go on as shell.
    """
    for name, value in options.items():
        _refuse_control_characters(_FIELDS.get(name, f"--{name}"), str(value))
    for flag in resources.sbatch_flags:
        _refuse_control_characters("sbatch_flags", flag)
    lines = [
        f"#SBATCH --{name}={value}" if value != "" else f"#SBATCH --{name}" for name, value in options.items()
    ]
    return [*lines, *(f"#SBATCH {flag}" for flag in resources.sbatch_flags)]


def _refuse_control_characters(field: str, value: str) -> None:
    if (found := control_character(value)) is not None:
        raise ConfigError(
            "a value for the batch script is not one line of text",
            where=field, got=f"{found} in {value!r}", expected="no newlines and no other control characters",
            fix="rename the folder" if field in ("run_dir", "working directory") else None,
        )  # fmt: skip


def log_pattern(path: Path | str) -> str:
    """A value for ``--output``: Slurm's ``%`` patterns only in the file's name, not in its folder."""
    folder, name = Path(path).parent, Path(path).name
    return _quoted(f"{str(folder).replace('%', '%%')}/{name}")


def _quoted(value: str) -> str:
    """A value as sbatch reads it in an #SBATCH line, where quotes work as in the shell."""
    return value if re.fullmatch(r"[\w@%+=:,./\[\]&|*-]*", value) else '"' + value.replace('"', r"\"") + '"'


def environment_lines(environment: EnvironmentConfig) -> list[str]:
    """Bash that makes Python and its libraries available in a job."""
    lines: list[str] = []
    if environment.modules:
        lines.append(f"module load {shlex.join(environment.modules)}")
    if environment.conda is not None:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {expandable(environment.conda)}"]
    if environment.venv is not None:
        lines.append(f"source {expandable(environment.venv + '/bin/activate')}")
    lines += environment.setup
    lines += [f"export {name}={expandable(str(value))}" for name, value in environment.variables.items()]
    return lines


def _site(cluster: ClusterConfig, resources: Resources, run_dir: Path, chain: str, training: bool) -> str:
    environment, restart = cluster.environment, cluster.restart
    lines = [f"# --- site: {cluster.name}", *environment_lines(environment)]
    if environment.node_scratch is not None:
        # Made on every node by the processes: the node of the batch script is only one of them.
        lines.append(f"export TSUGIKI_NODE_SCRATCH={expandable(environment.node_scratch)}")
    prefix, srun_flags = container_prefix(environment.container, resources)
    command = [*python_command(cluster), "-P", "-m", "tsugiki"]
    if environment.command is not None:
        command = shlex.split(environment.command)
    lines += [
        f"TSUGIKI_COMMAND=({' '.join(map(expandable, command))})",
        f"CONTAINER=({' '.join(map(expandable, prefix))})",
        f"SRUN_FLAGS=({' '.join(map(expandable, [*srun_flags, *resources.srun_flags]))})",
        f"export TSUGIKI_SCRIPTS={shlex.quote(str(SCRIPTS))}",
        f"export TSUGIKI_RUN_DIR={shlex.quote(str(run_dir))}",
        f"export TSUGIKI_CHAIN={shlex.quote(chain)}",
        f"export TSUGIKI_REQUEUE={int(restart.requeue)}",
        f"export TSUGIKI_MAX_IDLE_RESTARTS={restart.maximum_restarts_without_progress}",
        f"export TSUGIKI_EXCLUDE_AFTER={restart.exclude_node_after_failures}",
    ]
    if training:
        lines += [
            f"export TSUGIKI_SPARE_NODES={resources.spare_nodes}",
            "# shellcheck disable=SC2016  # expanded on the node",
            f"export TSUGIKI_NODE_CHECK={shlex.quote(restart.node_check or '')}",
        ]
    return "\n".join([*lines, "# --- end of site", ""])


def python_command(cluster: ClusterConfig) -> list[str]:
    """Python inside the environment; the very Python that submits where the site brings none."""
    environment = cluster.environment
    if environment.python is not None:
        return [environment.python]
    bare = not environment.modules and environment.conda is None and environment.venv is None
    return [sys.executable if bare and environment.container is None else "python"]


def container_prefix(container: ContainerConfig | None, resources: Resources) -> tuple[list[str], list[str]]:
    """Prefix of every process, and flags of srun."""
    if container is None:
        return [], []
    if container.kind == "pyxis":
        mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
        # Paths in configurations are relative to the checkout, where the batch script runs.
        place = [f"--container-image={container.image}", "--container-workdir=$PWD"]
        return [], [*place, *mounts, *container.flags]
    prefix = ["apptainer", "exec", "--pwd", "$PWD", *(["--nv"] if resources.gpus_per_node else [])]
    for mount in container.mounts:
        prefix += ["--bind", mount]
    return [*prefix, *container.flags, container.image], []


def expandable(value: str) -> str:
    """A value in double quotes: ``$NAMES`` and a leading ``~/`` are expanded on the node, nothing else is."""
    value = re.sub(r"^~(?=/)", "$HOME", value)
    return '"' + re.sub(r'(["\\`])|\$(?![A-Za-z_{])', lambda found: "\\" + found[0], value) + '"'
