"""What benchmarks a configuration asks for: published tables, our tasks, and the files these read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tsugiki.evaluation.benchmarks.files import find_file
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.config import expand_path
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

    @property
    def key(self) -> str:
        """Key in the results."""
        return self.task if self.suite is None else f"{self.suite}/{self.title}"


@cache
def suites() -> dict[str, dict[str, Any]]:
    """Suites by name, as ``suites.yaml`` has them."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((_HERE / "suites.yaml").read_text(encoding="utf-8"))
    return loaded


@cache
def published_perplexities() -> dict[str, Any]:
    """What ``perplexities.yaml`` says: ``source``, and by row ``published`` values of sets by name."""
    loaded: dict[str, Any] = yaml.safe_load((_HERE / "perplexities.yaml").read_text(encoding="utf-8"))
    return loaded


@cache
def own_tasks() -> dict[str, dict[str, Any]]:
    """Our tasks by name, variants written out."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((_HERE / "tasks").glob("*.yaml")):
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        variants = task.pop("variants", None)
        if variants is None:
            found[task["task"]] = task
            continue
        for name, changes in variants.items():
            merged = {**task, **changes, "data": {**task["data"], **changes.get("data", {})}}
            merged["task"] = f"{task['task']}_{name}"
            found[merged["task"]] = merged
    return found


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
            found.append(Benchmark(name, name))
    overridden = [replace(item, fewshot=config.fewshot.get(item.task, item.fewshot)) for item in found]
    return list(dict.fromkeys(overridden))


def _file_names(asked: Sequence[Benchmark]) -> list[str]:
    """Files that our tasks among these read, those of the examples only where examples are shown."""
    names: set[str] = set()
    for item in asked:
        if item.task in own_tasks():
            data = own_tasks()[item.task]["data"]
            names.add(data["file"])
            if item.fewshot and "examples" in data:
                names.add(data["examples"])
    return sorted(names)


def data_files(config: HarnessConfig) -> list[Path]:
    """The local files that the configuration's tasks read and that are there."""
    if config.data is None:
        return []
    found = (find_file(expand_path(config.data), name) for name in _file_names(benchmarks(config)))
    return [path for path in found if path is not None]


def missing_files(config: HarnessConfig) -> list[str]:
    """Names of the files that the configuration's tasks read and that are not there."""
    folder = None if config.data is None else expand_path(config.data)
    names = _file_names(benchmarks(config))
    return [name for name in names if folder is None or find_file(folder, name) is None]


def origins(names: Sequence[str]) -> list[str]:
    """What there is to say about where files come from, for error messages."""
    told = {task["data"]["file"]: task["data"].get("origin") for task in own_tasks().values()}
    return [f"{name}: {told[name]}" for name in names if told.get(name)]


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
