"""Building blocks of the HTML pages: everything is text in, text out, escaped here.

Values are shown by :func:`text`; a :class:`Markup` is HTML already and is left alone.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.experiment.pages.style import STYLE

MISSING = "–"
MINUS = "−"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as HTML: numbers with separators, None as a dash, text escaped."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup(MISSING)
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, int):
        return number(value, ",")
    if isinstance(value, float):
        return number(value, ",.4g")
    return Markup(html.escape(str(value)))


def number(value: float, form: str) -> Markup:
    """A number in a format of :func:`format`, with a minus sign instead of a hyphen."""
    return Markup(format(value, form).replace("-", MINUS))


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """An element. ``class_`` is written ``class``, ``aria_label`` is written ``aria-label``."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{text(content)}</{name}>")


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Parts one after another."""
    return Markup(separator.join(text(part) for part in parts))


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: heading.
        numeric: aligned to the right, in figures of equal width.
        hint: shown when the pointer rests on the heading.
    """

    title: str
    numeric: bool = True
    hint: str | None = None


def table(
    caption: str,
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[object]],
    *,
    hide_caption: bool = True,
) -> Markup:
    """A table; the first cell of a row heads it. Plain strings are numeric columns."""
    declared = [Column(column) if isinstance(column, str) else column for column in columns]
    head = join(
        tag("th", column.title, scope="col", class_="number" if column.numeric else None, title=column.hint)
        for column in declared
    )
    body = []
    for row in rows:
        cells = []
        for position, (column, value) in enumerate(zip(declared, row, strict=True)):
            kind = "number" if column.numeric else None
            cells.append(
                tag("th", value, scope="row", class_=kind) if position == 0 else tag("td", value, class_=kind)
            )
        body.append(tag("tr", join(cells)))
    return tag(
        "div",
        tag(
            "table",
            join(
                [
                    tag("caption", caption, class_="hidden" if hide_caption else None),
                    tag("thead", tag("tr", head)),
                    tag("tbody", join(body)),
                ]
            ),
        ),
        class_="scroll",
    )


def bar(
    value: float, maximum: float, kind: str = "result", interval: Sequence[float] | None = None
) -> Markup:
    """A horizontal bar, ``value`` of ``maximum``, with a whisker for a confidence interval."""
    width = 0.0 if maximum <= 0 else 100 * value / maximum
    whisker = Markup("")
    if interval is not None and maximum > 0:
        low, high = (100 * bound / maximum for bound in interval)
        whisker = tag("i", "", class_="whisker", style=f"left:{low:.2f}%;width:{max(high - low, 0):.2f}%")
    filled = tag("i", "", class_=f"fill {kind}", style=f"width:{width:.2f}%")
    return tag("span", join([filled, whisker]), class_="bar", aria_hidden="true")


def stacked(parts: Sequence[tuple[str, float]], kinds: Mapping[str, str]) -> Markup:
    """A bar of several parts that fill it together; ``kinds`` gives each part's colour class."""
    total = sum(value for _, value in parts) or 1.0
    pieces = [
        tag(
            "i",
            "",
            class_=f"part {kinds[name]}",
            style=f"width:{100 * value / total:.3f}%",
            title=f"{name}: {value:,.0f}",
        )
        for name, value in parts
        if value > 0
    ]
    return tag("span", join(pieces), class_="bar stacked", aria_hidden="true")


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """Colours and their names: (name, colour class)."""
    return tag(
        "ul",
        join(tag("li", join([tag("i", "", class_=kind), text(name)])) for name, kind in entries),
        class_="legend",
        aria_hidden="true",
    )


def badge(good: bool | None, content: str) -> Markup:
    """A short verdict: good, bad, or neither."""
    return tag("span", content, class_="badge " + {True: "good", False: "bad", None: "neutral"}[good])


def note(content: object, kind: str = "note") -> Markup:
    """A remark set apart from the text; kinds are ``note`` and ``missing``."""
    return tag("p", content, class_=kind)


def details(summary: str, content: object, *, opened: bool = False) -> Markup:
    """Content behind a line that opens it."""
    return tag("details", join([tag("summary", summary), text(content)]), open="" if opened else None)


def facts(pairs: Mapping[str, Any]) -> Markup:
    """A list of names and values."""
    return tag(
        "dl",
        join(tag("div", join([tag("dt", name), tag("dd", value)])) for name, value in pairs.items()),
        class_="facts",
    )


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        anchor: id, for the navigation.
        title: heading.
        content: HTML.
    """

    anchor: str
    title: str
    content: Markup


def page(title: str, subtitle: object, lead: object, sections: Sequence[Section]) -> str:
    """A whole self-contained page."""
    navigation = tag(
        "nav",
        join(tag("a", section.title, href=f"#{section.anchor}") for section in sections),
        aria_label="Sections",
    )
    body = join(
        tag("section", join([tag("h2", section.title), section.content]), id=section.anchor)
        for section in sections
    )
    header = tag("header", join([tag("h1", title), tag("p", subtitle, class_="subtitle"), text(lead)]))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{header}\n{navigation}\n<main>{body}</main>\n</body>\n</html>\n"
    )
