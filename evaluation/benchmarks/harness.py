"""Benchmarks through lm-evaluation-harness (extra ``eval``): its tasks, and ours that read local files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tsugiki.evaluation.benchmarks.scores import SCORES, find_score
from tsugiki.evaluation.benchmarks.suites import (
    Benchmark,
    benchmarks,
    has_chat_template,
    is_installed,
    missing_files,
    origins,
    suites,
)
from tsugiki.evaluation.benchmarks.task import Task, near, own_tasks, tasks_of
from tsugiki.evaluation.benchmarks.task_data import TaskData, records_of, render, wanted_form
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_

_NORMAL_95 = 1.959964
_SHORT_WINDOW = 2048
_RIGHT_OR_WRONG = frozenset({"acc", "acc_norm", "exact_match", "exact"})
"""Metrics of the harness that are 0 or 1 for a question."""
_ZERO_TO_ONE = _RIGHT_OR_WRONG | {"f1"}
"""Metrics of the harness whose scale ends at 1."""


def check(config: HarnessConfig) -> list[Benchmark]:
    """Make sure that everything asked for can be run, before any model is loaded.

    Raises:
        EnvironmentError_: lm-evaluation-harness, or a library that a task needs, is not installed.
        ConfigError: no such task.
        DataError: files of our tasks are missing.
    """
    if not is_installed():
        raise EnvironmentError_(
            "lm-evaluation-harness is not installed",
            where="evaluate.harness",
            fix="pip install 'tsugiki[eval]'",
        )
    asked, tasks = benchmarks(config), tasks_of(config.tasks)
    foreign = [item.task for item in asked if item.task not in tasks]
    if foreign:
        _check_names(foreign)
        for task in foreign:
            _check_imports(task)
    own = [tasks[item.task] for item in asked if item.task in tasks]
    if own and config.data is None:
        raise ConfigError(
            "these tasks read local files",
            where="evaluate.harness.data",
            got=", ".join(sorted({task.task for task in own})),
            expected="the folder with the benchmarks' files",
        )
    missing = missing_files(config)
    if missing:
        fix = "get them from the benchmarks' authors, or leave their tasks out of evaluate.harness.tasks"
        raise DataError(
            "files of benchmarks are missing",
            where=config.data,
            got=", ".join(missing),
            fix="; ".join([fix, *origins(missing, config)]),
        )
    for asked_score in dict.fromkeys(task.score for task in own):
        modules, what, fix = find_score(asked_score).requires or ("", "", "")
        lacking = [module for module in modules.split() if importlib.util.find_spec(module) is None]
        if lacking:
            raise EnvironmentError_(
                f"{what} needs {', '.join(lacking)}", where="evaluate.harness.tasks", fix=fix
            )
    for item in asked:
        if item.task in tasks:
            _check_records(tasks[item.task], item.fewshot or 0, expand_path(str(config.data)))
    return asked


def _check_records(task: Task, fewshot: int, folder: Path) -> None:
    """Make sure that the files are those of this benchmark and hold as many examples as are asked for.

    Raises:
        DataError: they do not.
    """
    examples = task.data.examples
    found = _records(folder, task.data, with_examples=bool(fewshot))
    for split, records in found.items():
        where = folder / (examples if split == "examples" and examples else task.data).file
        for template in (task.doc_to_text, task.doc_to_target):
            render(template if "{" in template else f"{{{{{template}}}}}", records[0], where)
    # Drawn from the other questions, a question is no example of itself.
    available = len(found["examples"]) if "examples" in found else len(found["test"]) - 1
    if fewshot > available:
        raise DataError(
            "too few examples", where=folder / (examples or task.data).file, got=available,
            expected=f"{fewshot} for {task.task}", fix=f"set evaluate.harness.fewshot.{task.task}",
        )  # fmt: skip


def check_chat_template(directory: Path) -> None:
    """Make sure that a model carries a chat template.

    Raises:
        CheckpointError: it does not.
    """
    if has_chat_template(directory):
        return
    raise CheckpointError(
        "the model has no chat template",
        where=directory,
        expected="chat_template.jinja, since evaluate.harness.chat_template asks for it",
        fix="name a template under tokens.chat, or set evaluate.harness.chat_template: none",
    )


@cache
def _task_manager(with_harness_tasks: bool) -> Any:
    """The harness' index of tasks; reading its own thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_harness_tasks)


def _check_names(names: Sequence[str]) -> None:
    groups = {task.group for task in own_tasks().values() if task.group is not None}
    known = {*_task_manager(True).all_tasks, *own_tasks(), *groups, *suites()}
    for name in names:
        if name not in known:
            meant = near(name, known)
            singles = sorted({task.group or task.task for task in own_tasks().values()})
            raise ConfigError(
                "no such task",
                where="evaluate.harness.tasks",
                got=name,
                expected=f"a suite ({', '.join(suites())}), a task of ours ({', '.join(singles)}), a task of "
                "lm-evaluation-harness, or a file or address of your own",
                fix=f"did you mean {' or '.join(meant)}?" if meant else "list them with `lm-eval ls tasks`",
            )


def _check_imports(task: str) -> None:
    """Import what a task of the harness, or the tasks of a group, are made of; their data are not touched.

    Raises:
        EnvironmentError_: a library is missing or has the wrong version.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    index = _task_manager(True).task_index
    waiting, seen = [task], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in index:
            continue
        seen.add(name)
        entry = index[name]
        members = (entry.cfg or {}).get("task")
        if isinstance(members, list):
            waiting += [member if isinstance(member, str) else str(member.get("task")) for member in members]
        if entry.yaml_path is None:
            continue
        try:
            load_yaml(entry.yaml_path)
        except (ImportError, AssertionError) as error:  # the harness asserts versions
            raise EnvironmentError_(
                "a library that a benchmark needs is missing or of another version",
                where=f"evaluate.harness.tasks: {task}",
                got=error,
                fix="pip install 'tsugiki[eval]', or leave the task out",
            ) from error


def evaluate_benchmarks(
    directory: Path,
    asked: Sequence[Benchmark],
    config: HarnessConfig,
    *,
    dtype: str,
    device: str | None,
    seed: int,
    chat: bool = False,
) -> dict[str, dict[str, Any]]:
    """Run benchmarks on one Hugging Face model directory.

    Args:
        directory: model and tokenizer.
        asked: what :func:`check` returned.
        config: the harness section.
        dtype: name of the torch dtype of the weights.
        device: torch device; None is the first GPU when there is one, else the CPU.
        seed: seed of the few-shot examples.
        chat: write questions as conversations in the model's chat template, where a benchmark takes part.

    Returns:
        By :attr:`Benchmark.key`: value, standard error, 95 % interval, metric, few-shot examples, questions.
    """
    import logging

    import torch
    from lm_eval import simple_evaluate
    from transformers import PreTrainedTokenizerFast

    from tsugiki.evaluation.benchmarks.shared_context import SharedContextLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The tokenizer as its file has it: AutoTokenizer rebuilds some from their class.
    tokenizer: Any = str(directory)
    if (directory / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    model = SharedContextLM(
        pretrained=str(directory),
        tokenizer=tokenizer,
        dtype=dtype,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        batch_size=config.batch_size,
        add_bos_token=True,
    )
    results: dict[str, dict[str, Any]] = {}
    # One call for all tasks that are asked alike: a call costs seconds of its own.
    own = tasks_of(config.tasks)
    manager = _task_manager(any(item.task not in own for item in asked))
    alike: dict[tuple[int | None, bool, int | None], list[Benchmark]] = {}
    for item in asked:
        alike.setdefault((item.fewshot, chat and item.chat, item.maximum_new_tokens), []).append(item)
    for (fewshot, as_chat, maximum_new_tokens), group in alike.items():
        # A chat template writes the BOS itself, or leaves it out as in training.
        model.add_bos_token = not as_chat
        found = simple_evaluate(
            model=model,
            tasks=[
                _task(own[name], expand_path(str(config.data)), bool(fewshot)) if name in own else name
                for name in dict.fromkeys(item.task for item in group)
            ],
            task_manager=manager,
            num_fewshot=fewshot,
            limit=config.limit,
            gen_kwargs=_answer_length(maximum_new_tokens, model.max_length),
            apply_chat_template=as_chat,
            fewshot_as_multiturn=as_chat,
            bootstrap_iters=1000,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
        if found is not None:  # None on the other ranks of a distributed evaluation
            results.update({item.key: {**_outcome(item, found), "chat": as_chat} for item in group})
    return {item.key: results[item.key] for item in asked if item.key in results}


def _answer_length(wanted: int | None, window: int) -> dict[str, int] | None:
    """Some tasks let a model write 1,024 tokens, which leaves no room for the question in a short window."""
    if window < _SHORT_WINDOW:
        return {"max_gen_toks": min(wanted or window, window // 2)}
    return None if wanted is None else {"max_gen_toks": wanted}


def _task(task: Task, folder: Path, with_examples: bool) -> dict[str, Any]:
    """A task of ours or of the user in the harness' own form."""
    score = find_score(task.score)
    examples = task.data.examples
    return {
        **task.harness_settings(),  # a copy, since the harness writes into what it is given
        # From a file of its own, else among the other questions: named, or a question can be its own example.
        "fewshot_split": "examples" if examples is not None and with_examples else "test",
        **({"fewshot_config": {"sampler": "first_n"}} if examples is not None and examples.chosen else {}),
        "custom_dataset": partial(_dataset, folder=folder, data=task.data, with_examples=with_examples),
        "test_split": "test",
        "process_results": partial(_process, score=task.score, answers=task.answers),
        "metric_list": [
            {
                "metric": score.name,
                "aggregation": score.function if score.kind == "corpus" else "mean",
                "higher_is_better": True,
            }
        ],
    }


def _records(folder: Path, data: TaskData, *, with_examples: bool) -> dict[str, list[dict[str, Any]]]:
    """Records of the test file, and of the examples where they have a file and are shown."""
    found = {"test": records_of(folder, wanted_form(folder, data), data.add)}
    if data.examples is not None and with_examples:
        found["examples"] = records_of(folder, wanted_form(folder, data.examples), data.add)
    return found


def _dataset(folder: Path, data: TaskData, with_examples: bool, **_: Any) -> dict[str, Any]:
    from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]

    found = _records(folder, data, with_examples=with_examples)
    return {split: Dataset.from_list(records) for split, records in found.items()}


def _process(
    document: Mapping[str, Any], outcomes: Sequence[Any], score: str, answers: str | None
) -> dict[str, Any]:
    """Score of one question: ``outcomes`` is the text written, or (log-likelihood, greedy) per choice."""
    found = find_score(score)
    if found.kind == "choice":
        likelihoods = [outcome[0] for outcome in outcomes]
        return {found.name: found.function(likelihoods, _right_choice(document, answers))}
    wanted = document[str(answers)]
    given = str(outcomes[0]) if found.raw else str(outcomes[0]).strip()
    if found.kind == "corpus":
        return {found.name: (str(wanted), given)}
    return {found.name: found.function(given, wanted if isinstance(wanted, list) else [str(wanted)])}


def _right_choice(document: Mapping[str, Any], answers: str | None) -> int:
    if answers is not None:
        return int(document[answers])
    if "correct_answer_num" in document:
        return int(document["correct_answer_num"]) - 1
    return int(document["label"] if "label" in document else document["answer"])


def _outcome(item: Benchmark, found: Mapping[str, Any]) -> dict[str, Any]:
    name, measured = _number(item, found["results"][item.task])
    value = float(measured) * item.scale
    metric, _, chosen = name.partition(",")
    error = found["results"][item.task].get(f"{metric}_stderr,{chosen}")
    error = float(error) * item.scale if isinstance(error, (int, float)) else None
    members = list(_members(item.task, found.get("group_subtasks", {})))
    questions = sum(
        found["n-samples"][member]["effective"] for member in members if member in found["n-samples"]
    )
    return {
        "title": item.title,
        "suite": item.suite,
        "task": item.task,
        "metric": metric,
        "value": value,
        "standard_error": error,
        "interval": _interval(metric, value, error, questions),
        "fewshot": max(int(found["n-shot"].get(member) or 0) for member in members),
        "questions": questions,
    }


def _interval(metric: str, value: float, error: float | None, questions: int) -> list[float] | None:
    """95 % interval: Wilson's for shares of right answers, else from the standard error, within the scale.

    Answers that all score nothing have a standard error of zero, which is no certainty: Wilson's interval
    stands in, which assumes the largest variance that scores between 0 and 1 can have.
    """
    ours = find_score(metric) if metric in SCORES else None
    right_or_wrong = metric in _RIGHT_OR_WRONG or (ours is not None and ours.right_or_wrong)
    bounded = (metric in _ZERO_TO_ONE or (ours is not None and ours.bounded)) and 0 <= value <= 1
    if bounded and questions and (right_or_wrong or error == 0):
        return list(wilson(value, questions))
    if error is None:
        return None
    low, high = value - _NORMAL_95 * error, value + _NORMAL_95 * error
    return [max(0.0, low), min(1.0, high)] if bounded else [low, high]


def wilson(share: float, questions: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share; unlike the normal one it stays within 0 and 1 and is not empty
    when all answers are wrong.

    >>> [round(bound, 4) for bound in wilson(0.0, 6)]
    [0.0, 0.3903]
    """
    z2 = _NORMAL_95**2
    centre = (share + z2 / (2 * questions)) / (1 + z2 / questions)
    half = (z2 * share * (1 - share) / questions + z2**2 / (4 * questions**2)) ** 0.5 / (1 + z2 / questions)
    return max(0.0, centre - half), min(1.0, centre + half)


def _members(task: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The tasks of a group, groups within it opened; a task is its own only member."""
    if not groups.get(task):
        yield task
    for member in groups.get(task, ()):
        yield from _members(member, groups)


def _number(item: Benchmark, measured: Mapping[str, Any]) -> tuple[str, Any]:
    """The metric asked for, else the task's first; of the filter asked for, else the stricter one."""
    names = [
        name
        for name, value in measured.items()
        if "," in name and "_stderr," not in name and isinstance(value, (int, float))
    ]
    if item.metric is not None:
        names = [name for name in names if name.partition(",")[0] == item.metric]
    if item.filter is not None:
        names = [name for name in names if name.partition(",")[2] == item.filter]
    if not names:
        raise DataError(
            "the task does not give the metric",
            where=item.task,
            got=sorted(measured),
            expected=",".join(part for part in (item.metric, item.filter) if part),
        )
    chosen = min(names, key=lambda name: "flexible" in name)
    return chosen, measured[chosen]
