"""Files of published benchmarks, in the form their authors give them, as lists of records: one reader per form.

A form that several benchmarks have is a file of this folder, one that a single benchmark has stands beside its task, in
``evaluation/benchmarks/tasks``. Compressed files (``.zst``, ``.gz``) are found under the plain name.
"""

from __future__ import annotations

import gzip
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.config.registry import Registry
from tsugiki.experiment.errors import ConfigError, DataError

Record = dict[str, Any]
Reader = Callable[..., list[Record]]
"""(text of the file, **options) -> records. The options are what ``data.options`` of a task may say."""
FORMATS: Registry[Reader] = Registry(
    "form of a benchmark's file",
    ["tsugiki.evaluation.benchmarks.formats", "tsugiki.evaluation.benchmarks.tasks"],
)
"""Readers by the name that ``data.format`` of a task gives."""


def reader(name: str, where: object = None) -> Reader:
    """The reader of a form: one of ours by its name, or a user's own function, ``package.module:function``.

    Raises:
        ConfigError: no such form; the module cannot be imported.
    """
    found: Reader = FORMATS.load_object(name, where) if ":" in name else FORMATS.get(name, where)
    return found


def check_options(name: str, options: Mapping[str, Any], where: object = None) -> None:
    """Make sure that a reader takes these options.

    Raises:
        ConfigError: no such form, an option that its reader does not know, or one missing that it needs.
    """
    read = reader(name, where)
    try:
        inspect.signature(read).bind("", **options)
    except TypeError as error:
        raise ConfigError(
            f"the reader of `{name}` does not take these options",
            where=f"{where}: data.options",
            got=error,
            expected=", ".join(list(inspect.signature(read).parameters)[1:]) or "none",
        ) from error


def find_file(folder: Path, name: str) -> Path | None:
    """The file or its compressed form, or a folder of that name; None when there is none."""
    for ending in ("", ".zst", ".gz"):
        path = folder / (name + ending)
        if path.is_file():
            return path
    return folder / name if (folder / name).is_dir() else None


def files_within(path: Path) -> list[Path]:
    """The JSON files of a folder, in the order of their paths, numbers by value; of a file, itself."""
    if not path.is_dir():
        return [path]
    found = [item for item in path.rglob("*.json*") if item.is_file()]
    return sorted(found, key=lambda item: _natural(item.relative_to(path)))


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else 0, part) for name in path.parts for part in name.split(".")]


def read_records(
    folder: Path, file: str, form: str, options: Mapping[str, Any], add: Mapping[str, Any]
) -> list[Record]:
    """Records of a task's data file, or of all files of a folder.

    Args:
        folder: directory of the files.
        file: name of the file.
        form: name of its reader.
        options: of the reader.
        add: fields that every record gets.

    Raises:
        DataError: the file is missing, unreadable, or has no records.
    """
    path = find_file(folder, file)
    if path is None:
        raise DataError(
            "a benchmark's file is missing",
            where=folder / file,
            fix="get it from the benchmark's authors, or leave the task out of evaluate.harness.tasks",
        )
    records: list[Record] = []
    for part in files_within(path):
        try:
            records += reader(form)(_text(part), **options)
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise DataError(
                f"not a file of the form `{form}`", where=part, got=f"{type(error).__name__}: {error}"
            ) from error
    if not records:
        raise DataError("a benchmark's file has no records", where=path)
    return [{**record, **add} for record in records]


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        if path.suffix == ".zst":
            import zstandard

            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        elif path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except Exception as error:  # zstandard, gzip and the decoder have no common base
        raise DataError("unreadable file", where=path, got=error) from error
