"""Tables: one typed table that the pages show as HTML and the reports also write as Markdown or CSV.

A cell is a plain value or one of the classes below; ``kit.html.jinja`` has a macro of the name in ``kind`` for each.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tsugiki.experiment.pages.formats import MISSING, plain
from tsugiki.experiment.pages.languages import language_name

Interval = Sequence[float]


@dataclass(frozen=True)
class Number:
    """A number in a format of :func:`format`; a page writes a minus sign for the hyphen.

    Attributes:
        value: the number.
        form: its format, used for the bounds too.
        interval: lower and upper bound.
        verdict: ``better`` or ``worse`` colours it.
    """

    kind: ClassVar[str] = "number"
    value: float
    form: str = ",.4g"
    interval: Interval | None = None
    verdict: str | None = None

    @property
    def shown(self) -> str:
        """Without the interval."""
        return format(self.value, self.form)

    @property
    def bounds(self) -> str | None:
        """The interval, in brackets."""
        if self.interval is None:
            return None
        return f"[{', '.join(format(bound, self.form) for bound in self.interval)}]"

    def __str__(self) -> str:
        return self.shown if self.bounds is None else f"{self.shown} {self.bounds}"


@dataclass(frozen=True)
class Language:
    """A language, by its code; a page writes the name before it."""

    kind: ClassVar[str] = "language"
    code: str

    @property
    def name(self) -> str:
        """English name, or the code again."""
        return language_name(self.code)

    def __str__(self) -> str:
        return self.code


@dataclass(frozen=True)
class Styled:
    """Text in another look: ``small``, ``code``, or a ``link`` to an anchor of the same page.

    Attributes:
        text: what is shown.
        kind: the look.
        target: of a link, without the hash.
    """

    text: str
    kind: str = "small"
    target: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Unknown:
    """A dash that says why there is no value."""

    kind: ClassVar[str] = "unknown"
    reason: str

    def __str__(self) -> str:
        return MISSING


@dataclass(frozen=True)
class Verdict:
    """A short judgement in colour.

    Attributes:
        good: None is neither good nor bad.
        text: the word.
        remarks: small text behind it.
    """

    kind: ClassVar[str] = "verdict"
    good: bool | None
    text: str
    remarks: str = ""

    @property
    def colour(self) -> str:
        """Class of the badge."""
        return "neutral" if self.good is None else "good" if self.good else "bad"

    def __str__(self) -> str:
        return f"{self.text} {self.remarks}".strip()


@dataclass(frozen=True)
class Bar:
    """A horizontal bar.

    Attributes:
        value: its length.
        most: the length of a full bar.
        colour: ``1`` to ``8``, ``b`` (base) or ``r`` (result): the suffix of the style sheet's classes.
        interval: bounds of a whisker.
    """

    value: float
    most: float
    colour: str = "r"
    interval: Interval | None = None

    @property
    def width(self) -> float:
        """In percent."""
        return self._share(self.value)

    @property
    def whisker(self) -> tuple[float, float] | None:
        """Start and width in percent."""
        if self.interval is None or self.most <= 0:
            return None
        low, high = (self._share(bound) for bound in self.interval)
        return low, max(high - low, 0.0)

    def _share(self, value: float) -> float:
        return 0.0 if self.most <= 0 else 100 * value / self.most


@dataclass(frozen=True)
class Bars:
    """Bars below each other, for comparison; the numbers stand in other cells."""

    kind: ClassVar[str] = "bars"
    bars: tuple[Bar, ...]

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Stack:
    """One bar of several parts.

    Attributes:
        parts: (name, value, colour); a colour as in :class:`Bar`, or ``rest`` for a pale part.
        most: what a full bar stands for; the sum of the parts when it is None.
    """

    kind: ClassVar[str] = "stack"
    parts: tuple[tuple[str, float, str], ...]
    most: float | None = None

    @property
    def pieces(self) -> list[tuple[str, float, str]]:
        """(tooltip, width in percent, colour) of the parts that are not empty."""
        total = self.most or sum(value for _, value, _ in self.parts) or 1.0
        return [
            (f"{name}: {value:,.0f}", 100 * value / total, colour)
            for name, value, colour in self.parts
            if value > 0
        ]

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:,.0f}" for name, value, _ in self.parts if value > 0)


Cell = str | float | None | Number | Language | Styled | Unknown | Verdict | Bars | Stack


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: heading.
        numeric: aligned to the right, in figures of equal width.
        hint: shown when the pointer rests on the heading.
        on_page_only: left out of Markdown.
    """

    title: str
    numeric: bool = True
    hint: str | None = None
    on_page_only: bool = False


class Table:
    """A table; the first cell of a row heads it.

    Attributes:
        caption: what it shows.
        columns: headings.
        rows: cells, one for each column.
        caption_shown: or else for screen readers only.
        marked: rows that are shown as failures.
    """

    def __init__(
        self,
        caption: str,
        columns: Sequence[Column | str],
        rows: Iterable[Sequence[Cell]],
        *,
        caption_shown: bool = False,
        marked: Iterable[int] = (),
    ) -> None:
        """Plain strings are numeric columns.

        Raises:
            ValueError: a row has not one cell for each column.
        """
        self.caption = caption
        self.columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self.rows = [list(zip(self.columns, row, strict=True)) for row in rows]
        self.caption_shown = caption_shown
        self.marked = frozenset(marked)

    def markdown(self) -> str:
        """As a Markdown table, intervals behind their numbers."""
        shown = [column for column in self.columns if not column.on_page_only]
        lines = [
            [_markdown(column.title) for column in shown],
            *(
                [_markdown(plain(value)) for column, value in row if not column.on_page_only]
                for row in self.rows
            ),
        ]
        written = ["| " + " | ".join(line) + " |" for line in lines]
        rule = "|" + "|".join("---:" if column.numeric else "---" for column in shown) + "|"
        return "\n".join([written[0], rule, *written[1:]])

    def csv(self) -> str:
        """As CSV: numbers in full, None as an empty field."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        for row in self.rows:
            writer.writerow([value.value if isinstance(value, Number) else value for _, value in row])
        return out.getvalue()


def text_columns(*titles: str) -> list[Column | str]:
    """Columns of text."""
    return [Column(title, numeric=False) for title in titles]


def bars_column(title: str) -> Column:
    """A column of :class:`Bars` or :class:`Stack`."""
    return Column(title, numeric=False, on_page_only=True)


def _markdown(text: str) -> str:
    """A cell that cannot end its column or its row."""
    return " ".join(text.replace("|", r"\|").splitlines())
