"""Configuration of a Slurm site: what ``configs/clusters/*.yaml`` says."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tsugiki.experiment.config.load import RawConfig, load_raw
from tsugiki.experiment.config.shipped import clusters, find
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.config.validate import validate
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.stage_names import STAGE_NAMES

OVERRIDE_PREFIX = "cluster."

Role = Literal["cpu", "gpu", "train"]

ROLES: dict[str, Role] = {"base": "gpu", "evaluate": "gpu", "reference": "train", "train": "train"}
"""Role of each stage; stages that are not named here are ``cpu``."""


def _without_nulls(values: Any) -> Any:
    """A section of which every line is commented out is null in YAML: take its default."""
    return (
        {key: value for key, value in values.items() if value is not None}
        if isinstance(values, dict)
        else values
    )


def _nullable(schema: dict[str, Any]) -> None:
    """The JSON Schema of a model whose sections may be null."""
    for name, item in schema["properties"].items():
        schema["properties"][name] = {"anyOf": [item, {"type": "null"}]}


def _hours(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, (int, float)) and value > 744):
        raise ValueError("hours as a number up to 744 (31 days): 24, not 24:00:00, which YAML reads as 86400")
    return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def control_character(value: str) -> str | None:
    """The first character that ends a line or is invisible, as Python writes it; None where there is none.

    A value with a newline in an ``#SBATCH`` line goes on as a line of shell.
    """
    bad = (item for item in value if unicodedata.category(item) in ("Cc", "Zl", "Zp"))
    return next(map(repr, bad), None)


def _one_line(value: str) -> str:
    if (found := control_character(value)) is not None:
        raise ValueError(f"one line without control characters; it holds {found}")
    return value


Line = Annotated[str, AfterValidator(_one_line)]
"""Text that goes into one line of a batch script."""

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Resources(StrictModel):
    """What one job asks for. Everything has a default; only what is written overrides."""

    partition: Line | None = None
    """Partition (queue); null lets Slurm take its default."""
    account: Line | None = None
    """Account (project) the hours are charged to."""
    qos: Line | None = None
    """Quality of service."""
    constraint: Line | None = None
    """Node features, in Slurm's syntax (``a100&ib``)."""
    reservation: Line | None = None
    """Reservation."""
    nodes: int = Field(default=1, ge=1)
    """Nodes; only training uses more than one."""
    spare_nodes: int = Field(default=0, ge=0)
    """Nodes more than ``nodes`` that the training job holds. One takes the place of a node that is lost or left
    out, without queueing again; after any other failure training goes on at once on the nodes it has."""
    tasks_per_node: int | None = Field(default=None, ge=1)
    """Processes per node; null = one per GPU, or one where there is no GPU."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Cores per process; null lets Slurm take its default."""
    memory: Annotated[str | None, BeforeValidator(_text)] = Field(
        default=None,
        pattern=r"^(0|\d+[KMGT]?)$",
        json_schema_extra={
            "anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "null"}]
        },
    )
    """Memory per node, in Slurm's syntax (``64G``; without a unit MB; ``0`` = all of it)."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs per node. Given to the node, not to the task, so that every process sees all of them and its
    local rank is its device."""
    gpu_type: Line | None = None
    """Type of GPU where the site names types (``gpu:h100:8``)."""
    time_limit_hours: Annotated[float, BeforeValidator(_hours)] = Field(default=24.0, gt=0)
    """Wall time of one job; a longer training goes on in the next (see ``restart``)."""
    exclusive: bool = False
    """Take whole nodes."""
    exclude_nodes: list[Line] = []
    """Nodes never to be used, in Slurm's syntax."""
    sbatch_flags: list[Line] = []
    """Further flags of sbatch, e.g. ``--licenses=scratch``."""
    srun_flags: list[Line] = []
    """Further flags of srun, e.g. ``--cpu-bind=cores``, ``--mpi=none``."""

    @property
    def processes_per_node(self) -> int:
        """Tasks on each node."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)

    @property
    def processes(self) -> int:
        """Tasks of the job."""
        return self.nodes * self.processes_per_node

    @property
    def time_limit_minutes(self) -> int:
        """The time limit in Slurm's resolution, rounded up."""
        return max(1, -int(-self.time_limit_hours * 60 // 1))

    def over(self, base: Resources) -> Resources:
        """These resources where they say something, ``base`` for the rest."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


class ContainerConfig(StrictModel):
    """A container in which the stages run; the batch script itself stays outside."""

    kind: Literal["apptainer", "pyxis"]
    """``apptainer exec IMAGE`` around every process, or ``srun --container-image`` (Pyxis/Enroot)."""
    image: Line
    """Image: a .sif file or docker:// address (Apptainer), a .sqsh file or address (Pyxis)."""
    mounts: list[Line] = []
    """``/path`` or ``/outside:/inside``; the checkout, the run directory and the data must be visible."""
    flags: list[Line] = []
    """Further flags of ``apptainer exec``, or of srun for Pyxis (``--container-writable``)."""


class EnvironmentConfig(StrictModel):
    """How a job gets at Python and its libraries. In this order: modules, conda, venv, setup, variables."""

    modules: list[Line] = []
    """Loaded with ``module load``."""
    conda: Line | None = None
    """Conda environment, by name or path."""
    venv: Line | None = None
    """Virtual environment, by path."""
    setup: list[str] = []
    """Further lines of bash."""
    variables: dict[Annotated[str, Field(pattern=_VARIABLE)], str | int | float] = {}
    """Exported variables: ``NCCL_SOCKET_IFNAME``, ``NCCL_IB_HCA``, ``HF_HOME``. Here and in paths ``$NAMES``
    and a leading ``~/`` are expanded on the node."""
    container: ContainerConfig | None = None
    """Container; null runs on the node."""
    python: Line | None = None
    """Python inside the environment. Null = ``python``, and with no modules, conda, venv or container the
    very Python that submits."""
    command: Line | None = None
    """How Tsugiki is started inside the environment; null = ``<python> -P -m tsugiki``."""
    node_scratch: Line | None = None
    """Node-local folder for temporary files and compiler caches, made when missing
    (``/scratch/$USER/$SLURM_JOB_ID``)."""

    model_config = ConfigDict(json_schema_extra=_nullable)
    _empty_sections = model_validator(mode="before")(_without_nulls)

    @model_validator(mode="after")
    def _command_is_one(self) -> Self:
        if self.command is None:
            return self
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"command that the shell can read: {error}") from error
        if not words:
            raise ValueError("command with at least one word")
        return self


class RestartConfig(StrictModel):
    """How a job survives time limits, preemption and dead nodes."""

    requeue: bool = True
    """The site lets jobs requeue themselves. False: training is submitted as ``links`` jobs in a row."""
    links: int = Field(default=4, ge=1)
    """Jobs in a row, each going on where the one before stopped; used when requeue is false."""
    stop_seconds_before_limit: int = Field(default=300, ge=10)
    """Training is asked this long before the time limit to save a checkpoint and stop. Slurm may ask up to
    a minute earlier."""
    maximum_restarts_without_progress: int = Field(default=3, ge=0)
    """The job gives up after this many restarts that found no newer checkpoint than the one before."""
    exclude_node_after_failures: int = Field(default=2, ge=1)
    """A node whose rank was the first to fail this many times is left out of the next attempt."""
    node_check: str | None = 'bash "$TSUGIKI_SCRIPTS/check-node.sh"'
    """Run once on every node before training; a node for which it prints `BAD NODE: why` is left out. The default runs
    `tsugiki node-test` on GPU nodes, as `eval "$TSUGIKI_CLI node-test"`. Null = no check."""


class ArrayConfig(StrictModel):
    """A stage divided over the tasks of a job array."""

    tasks: int = Field(default=16, ge=1)
    """Array tasks; each takes its share of the stage's shards."""
    maximum_running: int | None = Field(default=None, ge=1)
    """Tasks that run at a time; null = no limit of ours."""


class ClusterConfig(StrictModel):
    """A Slurm site."""

    name: str = Field(default="cluster", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name shown in job listings and tags."""
    common: Resources = Resources()
    """Resources of every job."""
    cpu: Resources = Resources()
    """Over ``common`` for corpus, tokenizer, tokens, graft, export and report."""
    gpu: Resources = Resources()
    """Over ``common`` for base and evaluate."""
    train: Resources = Resources()
    """Over ``common`` for training."""
    stages: dict[str, Resources] = {}
    """Over all of these for one stage, e.g. ``export: {memory: 512G}``."""
    arrays: dict[Literal["corpus", "tokens"], ArrayConfig] = {}
    """Stages divided over job arrays."""
    environment: EnvironmentConfig = EnvironmentConfig()
    """Modules, Python, container, variables."""
    restart: RestartConfig = RestartConfig()
    """Requeue, time limit, bad nodes."""

    model_config = ConfigDict(json_schema_extra=_nullable)
    _empty_sections = model_validator(mode="before")(_without_nulls)

    @field_validator("stages", mode="before")
    @classmethod
    def _stages_are_known(cls, value: Any) -> Any:
        if isinstance(value, dict) and (unknown := sorted(set(value) - set(STAGE_NAMES))):
            raise ValueError(f"stages among {', '.join(STAGE_NAMES)}; not {', '.join(unknown)}")
        return value

    @model_validator(mode="after")
    def _jobs_outlast_the_signal(self) -> Self:
        ahead = self.restart.stop_seconds_before_limit
        for stage in STAGE_NAMES:
            if (limit := 60 * self.resources(stage).time_limit_minutes) <= ahead:
                raise ValueError(
                    f"restart.stop_seconds_before_limit below the time limit of every job; it is {ahead} s, "
                    f"the limit of {stage} {limit} s"
                )
        return self

    def resources(self, stage: str) -> Resources:
        """What the job of a stage asks for."""
        role: Resources = getattr(self, ROLES.get(stage, "cpu"))
        found = role.over(self.common)
        return self.stages[stage].over(found) if stage in self.stages else found


def cluster_path(name: str) -> Path:
    """The file of a cluster given by name (``gpu``) or by path.

    Raises:
        ConfigError: there is no such file.
    """
    path = find(Path(name))
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if not path.is_file():
            raise ConfigError("no such cluster file", where=path, fix="see configs/clusters/template.yaml")
        return path
    known = clusters()
    if name in known:
        return known[name]
    raise ConfigError(
        "no such cluster", where="--cluster", got=name,
        expected=f"a path of a YAML file, or one of {', '.join(known)}",
        fix="copy configs/clusters/template.yaml and adapt it",
    )  # fmt: skip


def load_cluster(name: str, overrides: Sequence[str] = ()) -> tuple[ClusterConfig, RawConfig]:
    """Read a cluster file; overrides are ``cluster.a.b=c``, the prefix included.

    Raises:
        ConfigError: the file or a value is wrong.
    """
    raw = load_raw(cluster_path(name), [item.removeprefix(OVERRIDE_PREFIX) for item in overrides])
    config = validate(ClusterConfig, raw)
    return config, raw


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """``--set`` values divided into those of the experiment and those of the cluster."""
    ours = [item for item in overrides if item.startswith(OVERRIDE_PREFIX)]
    return [item for item in overrides if item not in ours], ours
