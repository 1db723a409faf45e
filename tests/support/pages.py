"""Runs the examples of a documentation page, so that a page cannot say what is not so.

A page is cut at its ``## `` headings. The blocks of a section run in order in one temporary folder. An HTML comment on the
line before the fence, which a reader does not see, says what becomes of a block:

    <!-- file: profiles/xx.yaml -->    it is written there
    <!-- run -->                       it is run: ``bash`` with ``set -euo pipefail``, ``python`` in one interpreter a section,
                                       so that later blocks see the names of earlier ones
    <!-- run: fails -->                as above, and it must fail (bash: exit status not 0, python: an exception)
    <!-- output -->                    what the block that ran before it printed, stdout then stderr (or the exception);
                                       ``...`` stands for anything
    <!-- not run: why -->              nothing

Every ``python``, ``bash``, ``sh`` and ``yaml`` block must say one of these. ``tsugiki`` and ``python`` are those under test, and
the folder is on PYTHONPATH.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_LANGUAGES = {"python", "bash", "sh", "yaml"}
_MARKER = re.compile(r"<!-- *(file|run|output|not run)(?:: *(.*?))? *-->")
_CHECK = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class PageError(AssertionError):
    """An example does not do what the page says."""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    place: str
    language: str
    action: str
    """file, run, output, not run."""
    detail: str
    text: str


def sections(page: Path) -> dict[str, list[Block]]:
    """Heading -> blocks. Blocks before the first heading stand under the empty heading.

    Raises:
        PageError: a block that should say what becomes of it does not, or a fence is not closed.
    """
    found: dict[str, list[Block]] = {"": []}
    heading, marker, fence, start = "", None, None, 0
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if fence is not None:
            if line.strip() == "```":
                found[heading].append(_block(f"{page.name}:{start}", fence, marker, lines))
                fence, marker = None, None
            else:
                lines.append(line)
        elif line.startswith("```"):
            fence, start, lines = line.removeprefix("```").strip(), number, []
        elif line.startswith("## "):
            heading = line.removeprefix("## ").strip()
            found[heading] = []
        elif match := _MARKER.fullmatch(line.strip()):
            marker = match
        elif line.strip():
            marker = None
    if fence is not None:
        raise PageError(f"{page.name}:{start}: the block is not closed")
    return {heading: blocks for heading, blocks in found.items() if heading or blocks}


def _block(place: str, language: str, marker: re.Match[str] | None, lines: list[str]) -> Block:
    if marker is None:
        if language in _LANGUAGES:
            raise PageError(
                f"{place}: a {language} block must be file, run, output or not run; see {__name__}"
            )
        return Block(place, language, "not run", "", "")
    action, detail = marker.group(1), marker.group(2) or ""
    if action == "not run" and not detail:
        raise PageError(f"{place}: not run without a reason")
    return Block(place, language, action, detail, "\n".join(lines) + "\n")


def run_section(blocks: list[Block], folder: Path, timeout_seconds: float = 600) -> None:
    """Write, run and compare the blocks of one section.

    Raises:
        PageError: naming page and line, with what the block printed.
    """
    environment = _environment(folder)
    python: _Python | None = None
    printed = ""
    try:
        for block in blocks:
            if block.action == "file":
                path = folder / block.detail
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.action == "output":
                _compare(block, printed)
            elif block.action == "run":
                if block.language == "python":
                    python = python or _Python(folder, environment)
                    failed, printed = python.run(block)
                else:
                    failed, printed = _run_bash(block, folder, environment, timeout_seconds)
                if failed != (block.detail == "fails"):
                    raise PageError(f"{block.place}: {'failed' if failed else 'did not fail'}\n{printed}")
    finally:
        if python is not None:
            python.close()


def _environment(folder: Path) -> dict[str, str]:
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    for name, arguments in (("tsugiki", "-P -m tsugiki"), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        tool.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": f"{CHECKOUT}:{folder}",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


def _run_bash(
    block: Block, folder: Path, environment: dict[str, str], timeout_seconds: float
) -> tuple[bool, str]:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_seconds,
    )  # fmt: skip
    return done.returncode != 0, done.stdout + done.stderr


def _compare(block: Block, printed: str) -> None:
    if not doctest.OutputChecker().check_output(block.text, printed, _CHECK):
        raise PageError(f"{block.place}: the page says\n{block.text}\nprinted was\n{printed}")


_LOOP = r"""
import contextlib, io, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what child processes print must not get between the answers
names = {"__name__": "__main__"}
for line in sys.stdin:
    place, text = json.loads(line)
    printed, failed = io.StringIO(), False
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(text, place, "exec"), names)
        except Exception as error:
            failed = True
            print(f"{type(error).__name__}: {error}")
    print(json.dumps([failed, printed.getvalue()]), file=answers, flush=True)
"""


class _Python:
    """One interpreter whose names live from block to block."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._errors = (folder / ".tools" / "stderr").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _LOOP], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def run(self, block: Block) -> tuple[bool, str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([block.place, block.text]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise PageError(f"{block.place}: the interpreter ended\n{self._errors.read()[-4000:]}")
        failed, printed = json.loads(answer)
        return failed, printed

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=300)
        self._process.stdout.close()
        self._errors.close()
