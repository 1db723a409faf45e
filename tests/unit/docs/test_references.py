"""Paths, modules and commands that the documents name are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# The log tells of what was; the changelog of what is gone.
DOCUMENTS = [
    path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.name != "LOG.md"
]  # fmt: skip
ROOMS = ("tsugiki", "data", "tokenizer", "pretrain", "evaluation", "experiment", "slurm")
ENDINGS = r"(?:py|sh|sbatch|yaml|json|jsonl|jinja|md|txt|toml)"
ARTEFACTS = {
    "tokenizer": {
        "report.json",
        "report.html",
        "report.csv",
        "report.md",
        "pieces.tsv",
        "tokenizer.json",
        "tokenizer_config.json",
    },
    "data": set(),
}
"""Files of a run directory whose stage is called as a room."""


def named_paths(text: str) -> set[str]:
    """Paths below the top folders of the repository, written in code or link."""
    folders = "|".join([*ROOMS, "configs", "tests", "docs", "benchmarks"])
    pattern = (
        rf"(?<![\w./<>{{$-])((?:{folders})/(?:[\w.-]+/)*(?:[\w-]+(?:\.[\w-]+)*\.{ENDINGS}\b|(?=[`\s)]|$)))"
    )
    return set(re.findall(pattern, text))


def prose(text: str) -> str:
    """The text without blocks that a test runs, and without the names of the files that those write."""
    written = set(re.findall(r"<!-- *file: *(\S+) *-->", text))
    blocks = re.compile(r"^<!-- *(?:file|run|output|not run)\b.*?-->\n+```.*?^```$", re.MULTILINE | re.DOTALL)
    return "".join(
        part for part in re.split(r"(`[^`]*`)", blocks.sub("", text)) if part.strip("`") not in written
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_exist(path: Path) -> None:
    missing = []
    for name in named_paths(prose(path.read_text(encoding="utf-8"))):
        room, _, rest = name.partition("/")
        if rest not in ARTEFACTS.get(room, ()) and not (ROOT / name).exists():
            missing.append(name)
    assert sorted(missing) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_exist(path: Path) -> None:
    missing = []
    for name in set(re.findall(r"\btsugiki(?:\.[a-z_0-9]+)+", path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[1] not in (*ROOMS, "cli", "pipeline", "results", "tools", "schema", "vocabulary"):
            continue  # names of the interface: docs/api.md is executed
        # The longest module; what follows is a name in it.
        for end in range(len(parts), 0, -1):
            try:
                spec = importlib.util.find_spec(".".join(parts[:end]))
            except ModuleNotFoundError:
                spec = None
            if spec is not None:
                break
        rest = parts[end:]
        if rest and not (
            len(rest) <= 2 and re.search(rf"\b{rest[0]}\b", Path(str(spec and spec.origin)).read_text())
        ):
            missing.append(name)
    assert sorted(missing) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    import typer.main

    from tsugiki.cli.main import app

    group = typer.main.get_command(app)
    known = set(getattr(group, "commands"))  # noqa: B009 - click.Group or typer's own
    named = set(
        re.findall(
            r"(?:`|^ {4})(?:\S*bin/)?tsugiki ([a-z]+(?:-[a-z]+)*)\b",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    assert named <= known


def test_the_patterns_find_what_is_written() -> None:
    text = "see `data/corpus.py`, [x](docs/api.md), `experiment/pages/` and `runs/x/data/no.py`, tests/unit/ there"
    assert named_paths(text) == {"data/corpus.py", "docs/api.md", "experiment/pages/", "tests/unit/"}


def test_every_room_is_on_the_page_of_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in ROOMS:
        assert f"`{room}/`" in text
        for folder in sorted((ROOT / room).iterdir()):
            if (folder / "__init__.py").is_file() and room in ("data", "tokenizer", "pretrain", "evaluation"):
                assert f"{room}/{folder.name}" in text, f"{room}/{folder.name} is not on the page"
