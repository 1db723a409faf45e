"""How pages write numbers, sizes and times."""

from __future__ import annotations

MISSING = "–"
MINUS = "−"


def plain(value: object) -> str:
    """A value as text: numbers with separators, None as a dash.

    >>> [plain(value) for value in (None, True, 12345, -0.5, "a")]
    ['–', 'yes', '12,345', '-0.5', 'a']
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value)


def short(value: float) -> str:
    """A number for an axis: 1,500,000 as 1.5M."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{suffix}"
    return f"{value:.4g}"


def size(count: float) -> str:
    """A number of bytes, in powers of 1000.

    >>> size(1234), size(2_345_678)
    ('1.2 kB', '2.35 MB')
    """
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def percent(part: float, whole: float) -> str | None:
    """A share; None of nothing.

    >>> percent(1, 8), percent(1, 0)
    ('12.5%', None)
    """
    return f"{part / whole:.1%}" if whole else None


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(7.25), duration(75), duration(7300)
    ('7.2 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def clipped(value: str, most: int) -> str:
    """The start of a text, with dots where something was cut off."""
    return value if len(value) <= most else value[:most] + "…"
