"""What a benchmark task reads: the test file, the file of its examples, and other forms of either."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from pydantic import Field, field_validator

from tsugiki.evaluation.benchmarks.formats import Record, find_file, read_records
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import DataError

_TEMPLATES = jinja2.Environment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
)


class FileForm(StrictModel):
    """A file of records in one form."""

    file: str
    """Name of the file, or of a folder of files, in ``evaluate.harness.data``; compressed (``.zst``, ``.gz``) also."""
    format: str
    """Its form: a reader of `evaluation/benchmarks/formats` or beside the tasks, or ``package.module:function``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the reader wants to know."""
    lines: dict[str, str] = Field(default_factory=dict)
    """Fields whose values are the lines of further files, one for each record: ``{reference: wmt20.en-ja.ref}``."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Fields made of others: Jinja templates over a record."""
    chosen: dict[str, list[str]] = Field(default_factory=dict)
    """A field and its values: only these records, in this order."""

    @property
    def files(self) -> list[str]:
        """All files that it is made of."""
        return [self.file, *self.lines.values()]


class Examples(FileForm):
    """The file that examples come from."""

    instead: list[FileForm] = Field(default_factory=list)
    """Other forms of it, in turn, where ``file`` is not there."""


class TaskData(FileForm):
    """The file that a task reads, as the benchmark's authors publish it."""

    instead: list[FileForm] = Field(default_factory=list)
    """Other forms of it, in turn, where ``file`` is not there."""
    examples: Examples | None = None
    """Where examples come from, as a file name if it has the form of the test file. A file that is named and not
    there is an error; null: examples are drawn from the other questions."""
    add: dict[str, Any] = Field(default_factory=dict)
    """Fields that every record gets."""
    origin: str | None = None
    """Where the files come from, for `tsugiki evaluate --list` and for the message when one is missing."""
    licence: str | None = None
    """Licence of the files, where it is known."""

    @field_validator("examples", mode="before")
    @classmethod
    def _named_only(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, str):
            return value
        own = info.data
        return {"file": value, **{key: own[key] for key in ("format", "options", "fields") if key in own}}

    def forms(self) -> Iterator[FileForm]:
        """Every form that this describes."""
        yield from (self, *self.instead)
        if self.examples is not None:
            yield from (self.examples, *self.examples.instead)


def wanted_form(folder: Path | None, data: TaskData | Examples) -> FileForm:
    """The first form whose files are there; the preferred one where none is."""
    forms: list[FileForm] = [data, *data.instead]
    if folder is not None:
        for form in forms:
            if all(find_file(folder, name) is not None for name in form.files):
                return form
    return data


def records_of(folder: Path, form: FileForm, add: dict[str, Any]) -> list[Record]:
    """Records of a file with all their fields.

    Raises:
        DataError: a file is missing, unreadable, of another form or another benchmark.
    """
    records = read_records(folder, form.file, form.format, form.options, add)
    for field, name in form.lines.items():
        values = [record["line"] for record in read_records(folder, name, "text", {}, {})]
        if len(values) != len(records):
            raise DataError(
                "two files of a benchmark do not belong together", where=folder / name,
                got=f"{len(values)} lines", expected=f"{len(records)}, as in {form.file}",
            )  # fmt: skip
        records = [{**record, field: value} for record, value in zip(records, values, strict=True)]
    where = folder / form.file
    made = [
        {**record, **{name: render(template, record, where) for name, template in form.fields.items()}}
        for record in records
    ]
    for field, values in form.chosen.items():
        made = _chosen(made, field, values, where)
    return made


def _chosen(records: list[Record], field: str, values: list[str], where: Path) -> list[Record]:
    by_value: dict[str, Record] = {}
    for record in records:
        by_value.setdefault(str(record.get(field)), record)
    missing = [value for value in values if value not in by_value]
    if missing:
        raise DataError(
            "the examples of the published table are not in this file", where=where,
            got=f"no record with {field}: {missing[0]}", expected="the benchmark's training file",
        )  # fmt: skip
    return [by_value[value] for value in values]


def render(template: str, record: Record, where: object) -> str:
    """A Jinja template over a record.

    Raises:
        DataError: the record lacks a field.
    """
    try:
        return _compiled(template).render(**record)
    except jinja2.UndefinedError as error:
        raise DataError(
            "this looks like the file of another benchmark", where=where, got=f"{error.message}; {sorted(record)}",
            expected=f"the fields of {template!r}",
        ) from error  # fmt: skip


@cache
def _compiled(template: str) -> jinja2.Template:
    return _TEMPLATES.from_string(template)
