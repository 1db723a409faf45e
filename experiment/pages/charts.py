"""Line charts as inline SVG. Colours come from the page's style sheet, so they follow light and dark;
text is real text, so the reader's own fonts are used and a screen reader can read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tsugiki.experiment.pages.html import Markup, join, tag

Point = tuple[float, float]
_Scale = Callable[[float], float]


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


def short(value: float) -> str:
    """A number for an axis: 1,500,000 as 1.5M."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{suffix}"
    return f"{value:.4g}"


def line_chart(
    label: str,
    lines: Sequence[Line],
    *,
    x_title: str,
    width: int = 640,
    height: int = 240,
) -> Markup:
    """A chart of lines over a common axis.

    Args:
        label: what the chart shows, for who cannot see it.
        lines: at least one with points.
        x_title: written under the axis.
        width: of the drawing's own coordinates; the page scales it.
        height: likewise.
    """
    left, right, top, bottom = 44, 12, 10, 34
    drawn = [line for line in lines if line.points]
    xs = [x for line in drawn if not line.level for x, _ in line.points] or [0.0, 1.0]
    ys = [y for line in drawn for _, y in line.points if math.isfinite(y)] or [0.0, 1.0]
    y_ticks = nice_ticks(min(ys), max(ys), 4)
    x_low, x_high = min(xs), max(xs)
    x_ticks = [tick for tick in nice_ticks(x_low, x_high, 5) if x_low <= tick <= x_high]
    x_span, y_span = (x_high - x_low) or 1.0, y_ticks[-1] - y_ticks[0]

    def across(x: float) -> float:
        return left + (x - x_low) / x_span * (width - left - right)

    def down(y: float) -> float:
        return top + (y_ticks[-1] - y) / y_span * (height - top - bottom)

    parts: list[Markup] = [tag("title", label)]
    for tick in y_ticks:
        at = f"{down(tick):.1f}"
        parts.append(tag("line", x1=left, x2=width - right, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", short(tick), x=left - 7, y=at, dy="0.32em", text_anchor="end"))
    floor = height - bottom
    parts.append(tag("line", x1=left, x2=width - right, y1=floor, y2=floor, class_="axis"))
    for tick in x_ticks:
        at = f"{across(tick):.1f}"
        parts.append(tag("line", x1=at, x2=at, y1=floor, y2=floor + 4, class_="axis"))
        parts.append(tag("text", short(tick), x=at, y=floor + 16, text_anchor="middle"))
    middle = f"{(left + width - right) / 2:.1f}"
    parts.append(tag("text", x_title, x=middle, y=height - 3, text_anchor="middle"))
    for line in drawn:
        parts.extend(_draw(line, across, down, left, width - right))
    return tag("svg", join(parts), viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def _draw(line: Line, across: _Scale, down: _Scale, left: int, right: int) -> list[Markup]:
    tooltip = tag("title", line.name)
    if line.level:
        at = f"{down(line.points[0][1]):.1f}"
        return [tag("line", tooltip, x1=left, x2=right, y1=at, y2=at, class_="level")]
    finite = [(x, y) for x, y in line.points if math.isfinite(y)]
    points = [(across(x), down(y)) for x, y in finite]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    drawn = [tag("path", tooltip, d=path, class_=f"line s{line.colour}")]
    if len(points) <= 30:
        drawn.extend(
            tag(
                "circle",
                tag("title", f"{line.name}: {value:.4g} at {short(position)}"),
                cx=f"{x:.1f}",
                cy=f"{y:.1f}",
                r=3,
                class_=f"d{line.colour}",
            )
            for (x, y), (position, value) in zip(points, finite, strict=True)
        )
    return drawn


def thin(points: Sequence[Point], most: int = 400) -> list[Point]:
    """At most so many points: means of consecutive groups, so that a long run stays a small page."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
