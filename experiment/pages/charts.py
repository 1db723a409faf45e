"""Line charts. The geometry is computed here; ``kit.html.jinja`` draws it as inline SVG.

Colours come from the style sheet, so that charts follow light and dark; text is real text, so the reader's own fonts
are used and a screen reader can read it. Lines are all that needs drawing: what is compared by length is a table with
a column of bars, which has its numbers beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tsugiki.experiment.pages.formats import short
from tsugiki.experiment.pages.tables import Number, Table, text_columns

Point = tuple[float, float]
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 34
_LABELS = 74
"""Room for the names of lines at their ends, in the drawing's coordinates."""
_LINE_HEIGHT = 13
_DOTS = 30
"""Lines of at most so many points show each of them."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: for the legend and the tooltip.
        points: (x, y), ascending in x.
        colour: ``1`` to ``8``, ``b`` (base) or ``r`` (result): the suffix of the style sheet's classes.
        level: draw a dashed horizontal line at the first point's height instead.
    """

    name: str
    points: Sequence[Point]
    colour: str
    level: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis: what runs along it, and where a value lies.

    Attributes:
        low: value at the start.
        high: value at the end.
        ticks: values that are labelled.
        logarithmic: equal distances are equal ratios.
    """

    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the start and 1 at the end."""
        if self.logarithmic:
            return math.log(value / self.low) / (math.log(self.high / self.low) or 1.0)
        return (value - self.low) / ((self.high - self.low) or 1.0)


@dataclass(frozen=True)
class Drawn:
    """A line as the template draws it: a path and dots, or a level at ``y``.

    Attributes:
        name: of the line.
        colour: suffix of the classes.
        path: SVG path data, empty for a level.
        y: height of a level.
        dots: (x, y, tooltip).
        end: (y of the label, label) beside the last point.
    """

    name: str
    colour: str
    path: str = ""
    y: str | None = None
    dots: Sequence[tuple[str, str, str]] = ()
    end: tuple[str, str] | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis.

    Attributes:
        label: what the chart shows, for who cannot see it.
        lines: those without points are left out.
        x_title: written under the axis.
        y_title: what is measured; the heading of the numbers' column.
        caption: written over the chart.
        detail: small text behind the caption.
        width: of the drawing's own coordinates; the page scales it.
        height: likewise.
        y_range: lowest and highest value to show at least.
        x_most: largest x to show; what lies beyond is cut off.
        logarithmic: both axes.
        mark: x of a vertical line.
        names_at_ends: names and last values beside the lines.
        form: format of a value.
        x_names: what stands at x = 0, 1, 2, … in place of numbers.
    """

    label: str
    lines: Sequence[Line]
    x_title: str
    y_title: str
    caption: str | None = None
    detail: str | None = None
    width: int = 640
    height: int = 240
    y_range: tuple[float, float] | None = None
    x_most: float | None = None
    logarithmic: bool = False
    mark: float | None = None
    names_at_ends: bool = False
    form: str = ".3f"
    x_names: Sequence[str] = ()

    @property
    def left(self) -> int:
        """Left end of the plot area."""
        return _LEFT

    @property
    def right(self) -> int:
        """Right end of the plot area."""
        return self.width - (_LABELS if self.names_at_ends else _RIGHT)

    @property
    def floor(self) -> int:
        """Lower end of the plot area."""
        return self.height - _BOTTOM

    @property
    def middle(self) -> float:
        """Where the title of the horizontal axis stands."""
        return (self.left + self.right) / 2

    @cached_property
    def _shown(self) -> list[tuple[Line, list[Point]]]:
        """Lines with the points that can be drawn."""
        found = [(line, [point for point in line.points if self._can_be_drawn(point)]) for line in self.lines]
        return [(line, points) for line, points in found if points]

    def _can_be_drawn(self, point: Point) -> bool:
        x, y = point
        inside = self.x_most is None or x <= self.x_most
        return inside and math.isfinite(y) and (not self.logarithmic or min(x, y) > 0)

    @cached_property
    def x_axis(self) -> Axis:
        """The horizontal axis; it ends where the lines end."""
        xs = [x for line, points in self._shown if not line.level for x, _ in points] or [0.0, 1.0]
        if self.logarithmic:
            decades = _decades(min(xs), max(xs))
            return Axis(min(xs), max(xs), [tick for tick in decades if min(xs) <= tick <= max(xs)], True)
        ticks = nice_ticks(min(xs), max(xs), 5)
        return Axis(min(xs), max(xs), [tick for tick in ticks if min(xs) <= tick <= max(xs)])

    @cached_property
    def y_axis(self) -> Axis:
        """The vertical axis, from tick to tick."""
        ys = [y for _, points in self._shown for _, y in points] or [0.0, 1.0]
        low, high = min([*ys, *(self.y_range or ())]), max([*ys, *(self.y_range or ())])
        ticks = _decades(low, high) if self.logarithmic else nice_ticks(low, high, 4)
        return Axis(ticks[0], ticks[-1], ticks, self.logarithmic)

    def across(self, x: float) -> str:
        """Where a value lies on the drawing."""
        return f"{self.left + self.x_axis.share(x) * (self.right - self.left):.1f}"

    def down(self, y: float) -> str:
        """Where a value lies on the drawing."""
        return f"{self.floor - self.y_axis.share(y) * (self.floor - _TOP):.1f}"

    @property
    def x_ticks(self) -> list[tuple[str, str]]:
        """(place, label)."""
        if self.x_names:
            return [(self.across(at), name) for at, name in enumerate(self.x_names)]
        return [(self.across(tick), short(tick)) for tick in self.x_axis.ticks]

    @property
    def y_ticks(self) -> list[tuple[str, str]]:
        """(place, label)."""
        return [(self.down(tick), short(tick)) for tick in self.y_axis.ticks]

    @property
    def mark_at(self) -> str | None:
        """Place of the vertical line."""
        return None if self.mark is None else self.across(self.mark)

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Names and colours of the lines that are drawn."""
        return [(line.name, line.colour) for line, _ in self._shown]

    @property
    def drawn(self) -> list[Drawn]:
        """The lines."""
        ends: list[float | None] = [None] * len(self._shown)
        if self.names_at_ends:
            wanted = [float(self.down(points[-1][1])) for _, points in self._shown]
            ends = list(spread(wanted, _LINE_HEIGHT, self.floor))
        found = []
        for (line, points), end in zip(self._shown, ends, strict=True):
            if line.level:
                found.append(Drawn(line.name, line.colour, y=self.down(points[0][1])))
                continue
            places = [(self.across(x), self.down(y)) for x, y in points]
            where = [self.x_names[round(x)] if self.x_names else short(x) for x, _ in points]
            tooltips = [f"{line.name}: {y:.4g} at {at}" for (_, y), at in zip(points, where, strict=True)]
            name = f"{line.name} {format(points[-1][1], self.form)}"
            found.append(
                Drawn(
                    line.name,
                    line.colour,
                    path="M" + "L".join(f"{x} {y}" for x, y in places),
                    dots=[(x, y, tooltip) for (x, y), tooltip in zip(places, tooltips, strict=True)]
                    if len(places) <= _DOTS
                    else (),
                    end=None if end is None else (f"{end:.1f}", name),
                )
            )
        return found


def numbers(caption: str, charts: Sequence[Chart], most: int = 20) -> Table:
    """What charts show as a table, ``most`` points of each line."""
    several = len(charts) > 1
    named = several or any(len(chart.lines) > 1 for chart in charts)
    first = charts[0]
    rows = [
        [
            *([chart.caption] if several else []),
            *([line.name] if named else []),
            round(x) if abs(x) < 1e9 and not 0 < abs(x) < 1 else short(x),
            Number(y, chart.form),
        ]
        for chart in charts
        for line in chart.lines
        if not line.level
        for x, y in _sampled(line.points, most)
    ]
    titles = [*(["chart"] if several else []), *(["line"] if named else [])]
    x_titles = list(dict.fromkeys(chart.x_title for chart in charts))
    return Table(caption, [*text_columns(*titles), " or ".join(x_titles), first.y_title], rows)


def _sampled(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of the points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(at * (len(points) - 1) / (most - 1))] for at in range(most)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range: steps of 1, 2, 2.5 or 5 times a power of ten.

    >>> nice_ticks(0.3, 4.2, 4)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power: float = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(position * step, 12) for position in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten that cover a range, at least two.

    >>> _decades(3, 250)
    [1.0, 10.0, 100.0, 1000.0]
    """
    first = math.floor(math.log10(low) + 1e-9)
    last = max(math.ceil(math.log10(high) - 1e-9), first + 1)
    return [10.0**power for power in range(first, last + 1)]


def spread(places: Sequence[float], gap: float, most: float) -> Sequence[float]:
    """Places of labels, moved as little as a gap between any two and an end at ``most`` ask for.

    >>> spread([50.0, 12.0, 14.0], 10.0, 55.0)
    [50.0, 12.0, 22.0]
    """
    result = list(places)
    order = sorted(range(len(places)), key=lambda at: places[at])
    for before, index in pairwise(order):
        result[index] = max(result[index], result[before] + gap)
    limit = most
    for index in reversed(order):
        result[index] = min(result[index], limit)
        limit = result[index] - gap
    return result


def thin(points: Sequence[Point], most: int = 400) -> list[Point]:
    """At most so many points: means of consecutive groups, so that a long run stays a small page."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(len(points) / most)
    groups = [points[start : start + length] for start in range(0, len(points), length)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
