"""What each benchmark wants: ``tsugiki evaluate --list``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tsugiki.evaluation.benchmarks.formats import find_file
from tsugiki.evaluation.benchmarks.suites import Benchmark, benchmarks, suites
from tsugiki.evaluation.benchmarks.task import Task, own_tasks, tasks_of
from tsugiki.evaluation.benchmarks.task_data import Examples, TaskData, wanted_form
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.config.paths import expand_path


def every_benchmark(data: str | None) -> HarnessConfig:
    """All suites, and the tasks of ours that are in none of them."""
    listed = {column["task"] for suite in suites().values() for column in suite["columns"]}
    return HarnessConfig(tasks=[*suites(), *(name for name in own_tasks() if name not in listed)], data=data)


def listing(config: HarnessConfig) -> Iterator[str]:
    """Lines about every benchmark asked for: how it is asked, its files, how it differs from what was published."""
    folder = None if config.data is None else expand_path(config.data)
    tasks = tasks_of(config.tasks)
    for item in benchmarks(config):
        yield item.key
        yield from (f"  {name:<9} {value}" for name, value in _facts(item, tasks.get(item.task), folder))


def _facts(item: Benchmark, task: Task | None, folder: Path | None) -> Iterator[tuple[str, str]]:
    shots = item.fewshot if item.fewshot is not None else "the task's own number of"
    measure = item.metric or (task.score if task else "the task's first metric")
    yield "asked", f"{item.task}, {shots} examples{', chat' if item.suite and item.chat else ''}; {measure}"
    if task is None:
        yield "files", "fetched from the hub by lm-evaluation-harness"
    else:
        yield "file", _place(task.data, folder)
        if task.data.examples is not None:
            yield "examples", _place(task.data.examples, folder)
        elif item.fewshot:
            yield "examples", "from the other questions"
        yield "from", task.data.origin or "not known"
        yield "licence", task.data.licence or "not known"
    for differs in (item.differs, task.differs if task else None):
        if differs:
            yield "differs", differs


def _place(data: TaskData | Examples, folder: Path | None) -> str:
    """The files of the first form that is there, or those wanted, and whether they are here."""
    form = wanted_form(folder, data)
    names = " with ".join(form.files)
    others = sorted({name for other in data.instead for name in other.files} - set(form.files))
    if folder is None:
        state = "evaluate.harness.data is not set"
    elif not folder.is_dir():
        state = f"missing, there is no folder {folder}"
    elif all(find_file(folder, name) is not None for name in form.files):
        state, others = "here", []
    else:
        state = "missing"
    instead = f" (or {', '.join(others)})" if others else ""
    return f"{names}{instead}: {state}"
