"""A benchmark task: what its YAML file says, ours in ``evaluation/benchmarks/tasks`` and those of a user's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from tsugiki.evaluation.benchmarks.formats import check_options, reader
from tsugiki.evaluation.benchmarks.scores import find_score
from tsugiki.evaluation.benchmarks.task_data import TaskData
from tsugiki.experiment.config.own_code import source_files
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.registry import load_object
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import ConfigError

_TASKS = Path(__file__).parent / "tasks"
_WHERE = "evaluate.harness.tasks"
_NOT_OF_THE_HARNESS = frozenset({"title", "group", "data", "score", "answers", "fewshot", "chat", "differs"})


class Task(StrictModel):
    """A task; see lm-evaluation-harness for the fields that begin with ``doc_``, and the two after them."""

    task: str = Field(pattern=r"^[\w.-]+$")
    """Name in the configuration and the results."""
    group: str | None = None
    """Name under which all variants of a file are asked for together."""
    title: str | None = None
    """Name on the page; null is ``task``."""
    data: TaskData
    """What it reads."""
    output_type: Literal["multiple_choice", "generate_until"]
    """Whether the model chooses or writes."""
    doc_to_text: str
    """Jinja template of the question."""
    doc_to_target: str
    """Field or template of the answer, as examples show it."""
    doc_to_choice: str | list[str] | None = None
    """The choices, or a template of them."""
    target_delimiter: str | None = None
    """Between question and answer; null is a space."""
    description: str | None = None
    """Before the examples and the question."""
    fewshot_delimiter: str | None = None
    """After an example; null is an empty line."""
    generation_kwargs: dict[str, Any] | None = None
    """Where an answer ends, and how long it may be."""
    score: str
    """How an answer is scored: a function of `evaluation/benchmarks/scores` or beside the tasks, or
    ``package.module:function``."""
    answers: str | None = None
    """Field of the right answer, or of several; of a multiple choice: of the number of the right one, by default
    `correct_answer_num` (from 1), `label` or `answer`."""
    fewshot: int | None = Field(default=None, ge=0)
    """Examples before a question where neither suite nor configuration says; null is none."""
    chat: bool = True
    """Whether `evaluate.harness.chat_template` applies to it."""
    differs: str | None = None
    """How this still differs from what was published, in a sentence for `tsugiki evaluate --list`."""

    @model_validator(mode="after")
    def _answers_are_known(self) -> Self:
        if self.output_type == "generate_until" and self.answers is None:
            raise ValueError(
                "a task whose answers are written says under `answers` which field has the right one"
            )
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("a multiple choice says under `doc_to_choice` what there is to choose from")
        return self

    def harness_settings(self) -> dict[str, Any]:
        """What goes to lm-evaluation-harness as it stands."""
        return self.model_dump(exclude=set(_NOT_OF_THE_HARNESS), exclude_none=True)


def read_tasks(content: Any, where: object) -> dict[str, Task]:
    """The tasks of one file by name, variants written out.

    ``variants`` is a mapping of names to what differs; of ``data`` only what differs is said. The name of a variant
    follows that of the file: ``m3exam_th``.

    Raises:
        ConfigError: unknown or missing fields, an unknown form or score, or options that the reader does not take.
    """
    if not isinstance(content, dict):
        raise ConfigError(
            "not a benchmark task", where=where, got=type(content).__name__, expected="a mapping"
        )
    shared = {key: value for key, value in content.items() if key != "variants"}
    variants = content.get("variants")
    if variants is None:
        described = [shared]
    elif isinstance(variants, dict) and all(isinstance(changes, dict) for changes in variants.values()):
        described = [_variant(shared, str(name), changes) for name, changes in variants.items()]
    else:
        raise ConfigError(
            "not a benchmark task", where=where, got=variants, expected="variants: {name: {…}, …}"
        )
    found = {}
    for item in described:
        task = _validated(item, where)
        found[task.task] = task
    return found


def _variant(shared: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**shared, **changes, "data": {**shared.get("data", {}), **changes.get("data", {})}}
    merged["group"] = shared.get("group", shared.get("task"))
    merged["task"] = f"{shared.get('task')}_{name}"
    if "title" in shared and "title" not in changes:
        merged["title"] = f"{shared['title']} {name}"
    return merged


def _validated(item: Mapping[str, Any], where: object) -> Task:
    try:
        task = Task.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(
            "not a benchmark task",
            where=f"{where}: {item.get('task')}",
            got=f"{field}: {first['msg']}" if field else first["msg"],
            expected=f"fields {', '.join(Task.model_fields)}",
        ) from error
    place = f"{where}: {task.task}"
    for form in task.data.forms():
        check_options(form.format, form.options, place)
    kind = find_score(task.score, place).kind
    if (kind == "choice") != (task.output_type == "multiple_choice"):
        raise ConfigError(
            "this score is not for tasks of this type", where=place, got=f"{task.score}, {task.output_type}",
            expected="`accuracy` with multiple_choice, the others with generate_until",
        )  # fmt: skip
    return task


@cache
def own_tasks() -> dict[str, Task]:
    """The tasks that ship with Tsugiki, by name."""
    found: dict[str, Task] = {}
    for path in sorted(_TASKS.glob("*.yaml")):
        found |= read_tasks(_yaml(path), path.name)
    return found


def is_users_own(name: str) -> bool:
    """Whether an item of ``evaluate.harness.tasks`` is a file or an address, not a name."""
    return name.endswith((".yaml", ".yml")) or (":" in name and "/" not in name)


def opened(name: str) -> dict[str, Task]:
    """The tasks that an item of ``evaluate.harness.tasks`` names: a user's file or address, one of ours, or a group.

    Returns:
        By name; empty where it is none of them.

    Raises:
        ConfigError: no such file, malformed, or a task that has the name of one of ours.
    """
    if not is_users_own(name):
        ours = own_tasks()
        return {task.task: task for task in ours.values() if name in (task.task, task.group)}
    if name.endswith((".yaml", ".yml")):
        path = expand_path(name)
        if not path.is_file():
            raise ConfigError("no such file of a benchmark task", where=_WHERE, got=name)
        found = read_tasks(_yaml(path), path)
    else:
        found = read_tasks(load_object(name, _WHERE, kind="benchmark task"), name)
    for task in found:
        if task in own_tasks():
            raise ConfigError(
                "two benchmark tasks of one name", where=_WHERE, got=f"{name}: {task}",
                expected="a name that no task of ours has",
            )  # fmt: skip
    return found


def tasks_of(names: Iterable[str]) -> dict[str, Task]:
    """All tasks of ours, and those of a user's own that these items of ``evaluate.harness.tasks`` name."""
    found = dict(own_tasks())
    for name in names:
        if is_users_own(name):
            found |= opened(name)
    return found


def own_files(names: Iterable[str]) -> list[Path]:
    """Files of a user's own that decide what these tasks ask and how it is scored: YAML files and modules."""
    found: list[Path] = []
    modules: set[str] = set()
    for name in filter(is_users_own, names):
        if name.endswith((".yaml", ".yml")):
            found.append(expand_path(name))
        else:
            modules.add(name.partition(":")[0])
        for task in opened(name).values():
            for form in task.data.forms():
                if ":" in form.format:
                    modules |= {form.format.partition(":")[0], reader(form.format).__module__}
            if ":" in task.score:
                modules |= {task.score.partition(":")[0], find_score(task.score).function.__module__}
    return [*dict.fromkeys(found), *source_files(modules)]


def near(name: str, known: Iterable[str]) -> list[str]:
    """Names that a misspelt one may have meant."""
    return difflib.get_close_matches(name, sorted(known), n=3)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError("unreadable benchmark task", where=path, got=error) from error
