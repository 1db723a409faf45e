"""Pages: typed results and a template make one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tsugiki.experiment.pages.formats import MINUS, plain, short

_KIT = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Missing:
    """Content of a section that cannot be shown.

    Attributes:
        reason: which artefact is not there, and what that means.
    """

    reason: str


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        layout: macro of the page's template that lays the content out; also the anchor for the navigation.
        title: heading.
        content: a typed result, or :class:`Missing`; a section of None is left out.
        detail: small text behind the heading.
        anchor: where several sections have the same layout.
    """

    layout: str
    title: str
    content: object
    detail: str | None = None
    anchor: str | None = None

    @property
    def missing(self) -> str | None:
        """Why there is nothing to show."""
        return self.content.reason if isinstance(self.content, Missing) else None


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: heading.
        subtitle: the line below it.
        sections: in order.
        cards: (figure, what it is) at the top.
        warnings: remarks at the top.
        refresh_seconds: how often a browser loads the page again; None never.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    cards: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    refresh_seconds: int | None = None

    @property
    def shown(self) -> list[Section]:
        """Sections that have content."""
        return [section for section in self.sections if section.content is not None]


def render(page: Page, template: Path) -> bytes:
    """A page as UTF-8; halves of surrogate pairs, which a crawl may hold, become question marks.

    Args:
        page: what it shows.
        template: file with a macro for each layout that the sections name.
    """
    environment = _environment(template.parent)
    layouts = environment.get_template(template.name).module
    html: str = environment.get_template("page.html.jinja").render(page=page, layouts=layouts)
    return html.encode(errors="replace")


def render_section(section: Section, template: Path) -> str:
    """The HTML of one section alone."""
    environment = _environment(template.parent)
    layouts = environment.get_template(template.name).module
    kit = environment.get_template("kit.html.jinja").module
    return str(kit.section(section, layouts))


@lru_cache
def _environment(folder: Path) -> Any:
    """Templates of a folder and of the kit; everything that is printed is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _KIT]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = lambda value: minus(plain(value)) if _is_number(value) else plain(value)
    environment.filters["minus"] = minus
    environment.filters["short"] = short
    return environment


def minus(number: str) -> str:
    """A formatted number with a minus sign for the hyphen."""
    return number.replace("-", MINUS)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))
