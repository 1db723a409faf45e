"""What benchmarks a configuration asks for: published tables and single tasks, and the files these read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tsugiki.evaluation.benchmarks.formats import files_within, find_file
from tsugiki.evaluation.benchmarks.task import opened, own_files, tasks_of
from tsugiki.evaluation.benchmarks.task_data import wanted_form
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError, DataError

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """A task as it is run.

    Attributes:
        title: name in the published table, or the task's own.
        task: name of the task.
        suite: suite it belongs to, None for a task named on its own.
        fewshot: examples shown before a question; None is the task's own choice.
        metric: metric reported; None is the first of the task.
        filter: filter of the harness whose answer counts (`flexible-extract`); None is the strictest.
        scale: what the harness' number is multiplied by to lie between 0 and 1.
        maximum_new_tokens: length of an answer; None is the task's own choice.
        chat: whether `evaluate.harness.chat_template` applies to it.
        differs: how this still differs from what was published.
    """

    title: str
    task: str
    suite: str | None = None
    fewshot: int | None = None
    metric: str | None = None
    filter: str | None = None
    scale: float = 1.0
    maximum_new_tokens: int | None = None
    chat: bool = True
    differs: str | None = None

    @property
    def key(self) -> str:
        """Key in the results."""
        return self.task if self.suite is None else f"{self.suite}/{self.title}"


@cache
def suites() -> dict[str, dict[str, Any]]:
    """Suites by name, as ``suites.yaml`` has them."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((_HERE / "suites.yaml").read_text(encoding="utf-8"))
    del loaded["notes"]
    return loaded


@cache
def published_perplexities() -> dict[str, Any]:
    """What ``perplexities.yaml`` says: ``source``, and by row ``published`` values of sets by name."""
    loaded: dict[str, Any] = yaml.safe_load((_HERE / "perplexities.yaml").read_text(encoding="utf-8"))
    return loaded


def benchmarks(config: HarnessConfig) -> list[Benchmark]:
    """What the configuration asks for: suites opened, each benchmark once.

    Raises:
        ConfigError: a suite has no such column.
    """
    found: list[Benchmark] = []
    for name in config.tasks:
        suite, _, title = name.partition("/")
        if suite in suites():
            columns = suites()[suite]["columns"]
            chosen = [column for column in columns if title in ("", column["title"])]
            if not chosen:
                titles = [f"{suite}/{column['title']}" for column in columns]
                raise ConfigError(
                    "no such column of the published table",
                    where="evaluate.harness.tasks",
                    got=name,
                    expected=f"one of {', '.join(titles)}",
                )
            found.extend(Benchmark(suite=suite, chat=suites()[suite]["chat"], **column) for column in chosen)
        else:
            found.extend(_single(name))
    overridden = [replace(item, fewshot=config.fewshot.get(item.task, item.fewshot)) for item in found]
    return list(dict.fromkeys(overridden))


def _single(name: str) -> list[Benchmark]:
    """A task named on its own, or those of a file or a group; one of the harness is not known here."""
    tasks = opened(name)
    if not tasks:
        return [Benchmark(name, name)]
    return [
        Benchmark(task.title or task.task, task.task, fewshot=task.fewshot, chat=task.chat)
        for task in tasks.values()
    ]


def _file_names(config: HarnessConfig) -> list[str]:
    """Files that tasks of ours and of the user read, those of the examples only where examples are shown."""
    folder = None if config.data is None else expand_path(config.data)
    tasks, names = tasks_of(config.tasks), set[str]()
    for item in benchmarks(config):
        if item.task in tasks:
            data = tasks[item.task].data
            names.update(wanted_form(folder, data).files)
            if item.fewshot and data.examples is not None:
                names.update(wanted_form(folder, data.examples).files)
    return sorted(names)


def data_files(config: HarnessConfig) -> list[Path]:
    """The local files whose content decides the results: what the tasks read and is there, and the user's own."""
    own = own_files(config.tasks)
    if config.data is None:
        return own
    found = (find_file(expand_path(config.data), name) for name in _file_names(config))
    return [*own, *(part for path in found if path is not None for part in files_within(path))]


def missing_files(config: HarnessConfig) -> list[str]:
    """Names of the files that the configuration's tasks read and that are not there."""
    folder = None if config.data is None else expand_path(config.data)
    return [name for name in _file_names(config) if folder is None or find_file(folder, name) is None]


def origins(names: Sequence[str], config: HarnessConfig) -> list[str]:
    """What there is to say about where files come from, for error messages."""
    told: dict[str, str] = {}
    for task in tasks_of(config.tasks).values():
        licence = f" ({task.data.licence})" if task.data.licence else ""
        for name in (name for form in task.data.forms() for name in form.files):
            if name in names and task.data.origin:
                told.setdefault(name, f"{task.data.origin}{licence}")
    by_origin: dict[str, list[str]] = {}
    for name, origin in sorted(told.items()):
        by_origin.setdefault(origin, []).append(name)
    return [f"{', '.join(files)}: {origin}" for origin, files in by_origin.items()]


def is_installed() -> bool:
    """Whether lm-evaluation-harness, the extra ``eval``, is there."""
    return importlib.util.find_spec("lm_eval") is not None


def has_chat_template(directory: Path) -> bool:
    """Whether a Hugging Face model directory carries a chat template.

    Raises:
        DataError: an unreadable ``tokenizer_config.json``.
    """
    settings = directory / "tokenizer_config.json"
    if (directory / "chat_template.jinja").is_file():
        return True
    try:
        return settings.is_file() and bool(json.loads(settings.read_bytes()).get("chat_template"))
    except (ValueError, AttributeError) as error:
        raise DataError(
            "unreadable settings of the tokenizer", where=settings, got=error, expected="a JSON object",
            fix="download the base model again",
        ) from error  # fmt: skip
