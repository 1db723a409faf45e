"""How answers of our benchmark tasks are scored: one function per score.

A score that several benchmarks have is in a file of this folder, one that a single benchmark has stands beside its
task, in ``evaluation/benchmarks/tasks``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tsugiki.experiment.config.registry import Registry

SCORES: Registry[Callable[..., float]] = Registry(
    "score of a benchmark",
    ["tsugiki.evaluation.benchmarks.scores", "tsugiki.evaluation.benchmarks.tasks"],
)
"""Functions by the name that ``score`` of a task gives. What is said with ``register``:

- ``kind``: ``answer`` (the default): (text written, right answers) -> score of a question, whose mean is the task's;
  ``choice``: (log-likelihoods of the choices, number of the right one) -> score of a question;
  ``corpus``: ((reference, text written) of all questions) -> score of the task;
- ``right_or_wrong``: a question scores 0 or 1;
- ``bounded``: scores lie between 0 and 1, which ``right_or_wrong`` implies;
- ``raw``: the text is given as written, white space around it too;
- ``requires``: (modules, separated by spaces, what needs them, how to install them).
"""

Kind = Literal["answer", "choice", "corpus"]


@dataclass(frozen=True)
class Score:
    """A score as a task uses it.

    Attributes:
        name: of the metric in the results.
        function: see :data:`SCORES`.
        kind: what it is given.
        right_or_wrong: a question scores 0 or 1.
        bounded: scores lie between 0 and 1.
        raw: the text is given as written.
        requires: modules, what needs them, how to install them.
    """

    name: str
    function: Callable[..., float]
    kind: Kind = "answer"
    right_or_wrong: bool = False
    bounded: bool = False
    raw: bool = False
    requires: tuple[str, str, str] | None = None


def find_score(name: str, where: object = None) -> Score:
    """A score of ours by its name, or a user's own function for one answer, ``package.module:function``.

    Raises:
        ConfigError: no such score; the module cannot be imported.
    """
    if ":" in name:
        return Score(name.partition(":")[2], SCORES.load_object(name, where))
    entry = SCORES.entry(name, where)
    facts: dict[str, Any] = dict(entry.facts)
    facts["bounded"] = bool(facts.get("bounded") or facts.get("right_or_wrong"))
    return Score(name, entry.thing, **facts)
