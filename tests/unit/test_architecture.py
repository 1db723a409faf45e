"""Which file imports which: no circles, and the arrows of docs/architecture.md.

The graph is read from the source (``ast``), so that imports inside functions and those for type checkers count as well:
a circle that is hidden in a function is one. What a registry finds by its folder, and modules that are named in strings,
are not in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("data", "tokenizer", "pretrain", "evaluation")
ROOMS = ("experiment", *STAGES, "slurm", "tsugiki")

MAY_IMPORT: dict[str, set[str]] = {
    "experiment": set(),
    **{stage: {"experiment"} for stage in STAGES},
    "slurm": {"experiment", *STAGES},
    "tsugiki": set(ROOMS),
}
"""Rooms whose files the files of a room may import, besides their own."""

EXCEPTIONS = {
    # A job array and a submission are of a whole experiment, whose configuration and graph are there.
    ("tsugiki.slurm.arrays", "tsugiki.pipeline"),
    ("tsugiki.slurm.submit", "tsugiki.pipeline"),
}
"""Imports against the arrows, each with its reason."""

Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Files of the package by dotted name; the folders lie at the top of the repository."""
    found: dict[str, Path] = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if room == "tsugiki" else ("tsugiki", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterable[tuple[str, str]]:
    """Modules and names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def imports(root: Path) -> dict[str, set[str]]:
    """The files of the package that each file imports."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        for module, item in imported(path):
            target = f"{module}.{item}" if f"{module}.{item}" in known else module
            if target in known and target != name:
                graph[name].add(target)
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Files that import each other, directly or not: the strongly connected parts (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def room(name: str) -> str:
    """The room of a file; the face of the package is ``tsugiki``."""
    second = name.split(".")[1] if "." in name else ""
    return second if second in ROOMS else "tsugiki"


def against_the_arrows(graph: Graph) -> set[tuple[str, str]]:
    """Imports from one room into another that it may not import."""
    return {
        (name, other)
        for name, others in graph.items()
        for other in others
        if room(other) != room(name) and room(other) not in MAY_IMPORT[room(name)]
    }


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = imports(ROOT)
    assert len(graph) > 200 and sum(map(len, graph.values())) > 800  # it has been read
    assert circles(graph) == []


def test_rooms_import_along_the_arrows() -> None:
    assert against_the_arrows(imports(ROOT)) == EXCEPTIONS


def test_only_the_face_imports_the_cluster_and_the_pipeline() -> None:
    graph = imports(ROOT)
    users = {
        (name, other)
        for name, others in graph.items()
        for other in others
        if (room(other) == "slurm" or other == "tsugiki.pipeline")
        and room(name) not in ("tsugiki", room(other))
    }
    assert users == EXCEPTIONS


@pytest.mark.parametrize("folder", [*ROOMS, "tests", "benchmarks"])
def test_the_folders_are_imported_as_the_package_only(folder: str) -> None:
    """``import data`` takes whatever lies in the working directory."""
    top = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file() or path.name in ROOMS}
    top |= {"configs", "tests", "benchmarks", "setup"}
    for path in (ROOT / folder).rglob("*.py"):
        for module, _ in imported(path):
            first = module.partition(".")[0]
            assert first == "tsugiki" or first not in top, f"{path}: import {module}"


def test_what_is_looked_for_is_found(tmp_path: Path) -> None:
    """A circle through an import inside a function, a stage that imports another, experiment that imports a stage."""
    for name, text in {
        "data/a.py": "def later():\n    from tsugiki.data import b\n",
        "data/b.py": "from tsugiki.data.c import thing\nfrom tsugiki.experiment.x import y\n",
        "data/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tsugiki.data.a\n",
        "data/__init__.py": "",
        "tokenizer/t.py": "from tsugiki.data.c import thing\nfrom tsugiki.tokenizer import u\n",
        "tokenizer/u.py": "import json\n",
        "experiment/x.py": "import tsugiki.tokenizer.u\n",
        "tsugiki/pipeline.py": "from tsugiki.data import a\nfrom tsugiki.slurm import s\n",
        "slurm/s.py": "from tsugiki.data.a import later\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = imports(tmp_path)
    assert circles(graph) == [["tsugiki.data.a", "tsugiki.data.b", "tsugiki.data.c"]]
    assert against_the_arrows(graph) == {
        ("tsugiki.tokenizer.t", "tsugiki.data.c"),
        ("tsugiki.experiment.x", "tsugiki.tokenizer.u"),
    }
