"""Nothing that is read may run: every call that can turn a file or a string into code, found in our source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("data", "tokenizer", "pretrain", "evaluation", "experiment", "slurm", "tsugiki")

ALWAYS = {
    *(
        f"{module}.{name}"
        for module in ("pickle", "dill", "cloudpickle", "marshal")
        for name in ("load", "loads")
    ),
    *("pickle.Unpickler", "shelve.open", "joblib.load", "pandas.read_pickle", "eval", "exec"),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.unsafe_load_all",
        "yaml.full_load",
        "yaml.Loader",
    ),
    *("os.system", "os.popen", "launch_pickled_pipeline"),
}
"""Calls, bases and strings that are found whatever their arguments are."""
UNSAFE_ARGUMENTS = {"trust_remote_code": True, "allow_pickle": True, "shell": True, "weights_only": False}
"""Arguments that switch the running of code on."""

ALLOWED = {
    (
        "pretrain/formats/torch_dist_metadata.py",
        "pickle.Unpickler",
    ): "the restricted one, which finds known classes",
    (
        "slurm/arrays.py",
        "launch_pickled_pipeline",
    ): "a task of a job array reads the pipeline that this very submission "
    "has pickled into the run directory, where configuration and batch scripts lie as well: who can write there runs "
    "code without it",
}
"""Where such a call stands, and why it may."""


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``pickle.load`` of an expression, the names as imported."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return f"{dotted(node.value, names)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def risks(source: str) -> Iterator[str]:
    """What a file may run, by name."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and (name := dotted(node, names)) in ALWAYS:
            yield name
        if isinstance(node, ast.Constant) and node.value in ALWAYS - {"eval", "exec"}:
            yield str(node.value)
        if not isinstance(node, ast.Call):
            continue
        given = {item.arg: item.value.value for item in node.keywords if isinstance(item.value, ast.Constant)}
        name = dotted(node.func, names)
        if name == "torch.load" and given.get("weights_only") is not True:
            yield name
        for argument, value in UNSAFE_ARGUMENTS.items():
            if given.get(argument) is value:
                yield f"{argument}={value}"


def test_every_call_that_can_run_a_file_is_known() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for name in risks(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("from pickle import loads as read\nread(b)", "pickle.loads"),
        ("import yaml as y\ny.load(f, Loader=y.SafeLoader)", "yaml.load"),
        ("import torch\ntorch.load(f)", "torch.load"),
        ("import torch\ntorch.load(f, weights_only=flag)", "torch.load"),
        ("eval('1')", "eval"),
        ("import subprocess\nsubprocess.run(x, shell=True)", "shell=True"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code=True"),
    ],
)
def test_the_search_finds(source: str, name: str) -> None:
    assert name in set(risks(source))


def test_the_search_leaves_the_rest() -> None:
    assert not set(risks("import torch, re\ntorch.load(f, weights_only=True)\nmodel.eval()\nre.compile('a')"))
