"""The page kit: one table, one chart, one way of escaping."""

from __future__ import annotations

import csv
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tsugiki.experiment.pages.charts import Chart, Line, nice_ticks, numbers, spread, thin
from tsugiki.experiment.pages.formats import short
from tsugiki.experiment.pages.page import Page, Section, render, render_section
from tsugiki.experiment.pages.tables import (
    Bar,
    Bars,
    Column,
    Language,
    Number,
    Stack,
    Styled,
    Table,
    Unknown,
    Verdict,
    bars_column,
    text_columns,
)

HOSTILE = """<script>alert('x')</script>"> {{ 7*7 }} {% raw %}"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "test.html.jinja"
    path.write_text(
        '{% import "kit.html.jinja" as kit %}\n'
        "{% macro table(it) %}{{ kit.table(it) }}{% endmacro %}\n"
        "{% macro chart(it) %}{{ kit.figure(it) }}{% endmacro %}\n"
        "{% macro wrong(it) %}{{ it.no_such_thing }}{% endmacro %}\n"
    )
    return path


def shown(template: Path, value: object) -> str:
    """HTML of a cell."""
    markup = render_section(Section("table", "t", Table("c", text_columns("a"), [[value]])), template)  # type: ignore[list-item]
    found = re.search(r'<th scope="row">(.*?)</th>', markup, re.DOTALL)
    assert found is not None
    return found[1]


def test_values_are_written_for_readers(template: Path) -> None:
    values = [None, True, 12345, -0.5, "a < b & c", Number(-1.5, "+.2f", (-2.0, 1.0), "better")]
    assert [shown(template, value) for value in values] == [
        "–", "yes", "12,345", "−0.5", "a &lt; b &amp; c",
        '<span class="better">−1.50</span> <span class="small bounds">[−2.00, +1.00]</span>',
    ]  # fmt: skip
    assert shown(template, Unknown('not "here"')) == '<span title="not &#34;here&#34;">–</span>'
    assert shown(template, Verdict(False, "bad", "2 failed")).startswith('<span class="badge bad">bad</span>')
    assert "Japanese" in shown(template, Language("ja")) and shown(template, Language("xx")) == "xx"


@pytest.mark.parametrize(
    "value",
    [
        HOSTILE,
        Styled(HOSTILE),
        Styled(HOSTILE, "code"),
        Styled(HOSTILE, "link", HOSTILE),
        Language(HOSTILE),
        Unknown(HOSTILE),
        Verdict(None, HOSTILE, HOSTILE),
        Stack(((HOSTILE, 1, "1"),)),
    ],
)
def test_every_cell_is_escaped(template: Path, value: object) -> None:
    markup = shown(template, value)
    assert "<script" not in markup and '">' not in markup.replace('">', "", markup.count("<"))
    assert "&lt;script&gt;" in markup and "7*7" in markup


def test_every_other_place_is_escaped(template: Path) -> None:
    chart = Chart(
        HOSTILE,
        [Line(HOSTILE, [(0, 1), (1, 2)], "1")],
        HOSTILE,
        HOSTILE,
        HOSTILE,
        HOSTILE,
        names_at_ends=True,
    )
    table = Table(HOSTILE, [Column(HOSTILE, hint=HOSTILE)], [[HOSTILE]], caption_shown=True)
    sections = [Section("table", HOSTILE, table, HOSTILE, HOSTILE), Section("chart", HOSTILE, chart)]
    page = render(Page(HOSTILE, HOSTILE, sections, [(HOSTILE, HOSTILE)], [HOSTILE]), template).decode()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 20
    assert "7*7" in page and " 49 " not in page


def test_no_template_prints_anything_unescaped() -> None:
    root = Path(__file__).parents[4]
    templates = [
        path
        for folder in ("data", "tokenizer", "evaluation", "experiment", "tsugiki")
        for path in (root / folder).rglob("*.html.jinja")
    ]
    assert len(templates) >= 8
    for path in templates:
        assert re.search(r"\|\s*safe|autoescape|Markup", path.read_text()) is None, path


def test_a_template_that_asks_for_what_is_not_there_is_an_error(template: Path) -> None:
    import jinja2

    with pytest.raises(jinja2.UndefinedError, match="no_such_thing"):
        render(Page("t", "s", [Section("wrong", "w", Number(1.0))]), template)


def test_halves_of_surrogate_pairs_do_not_stop_a_page(template: Path) -> None:
    assert b"a?b" in render(Page("t", "a\ud800b", []), template)


def test_one_table_for_page_markdown_and_csv(template: Path) -> None:
    table = Table(
        "Scores",
        [*text_columns("language"), bars_column("bar"), "score", Column("note", on_page_only=True)],
        [
            [Language("ja"), Bars((Bar(1, 2),)), Number(-1.25, "+.2f", (-1.5, 1.0)), "x"],
            ["a|b\nc", Bars(()), None, 3],
        ],
        marked=[1],
    )
    assert table.markdown().splitlines() == [
        "| language | score |",
        "|---|---:|",
        "| ja | -1.25 [-1.50, +1.00] |",
        r"| a\|b c | – |",
    ]
    assert list(csv.reader(table.csv().splitlines()))[1][0::2] == ["ja", "-1.25"]
    markup = render_section(Section("table", "t", table), template)
    assert markup.count("<tr") == 3 and markup.count('<tr class="marked">') == 1
    assert "−1.25" in markup and "width:50.00%" in markup
    with pytest.raises(ValueError, match="zip"):
        Table("c", ["a", "b"], [[1]])


def test_bars_are_shares_of_the_largest() -> None:
    assert Bar(1, 4).width == 25
    assert Bar(2, 4, interval=(1, 3)).whisker == (25, 50)
    assert Bar(1, 0).width == 0
    assert Stack((("a", 1, "1"), ("b", 3, "2"), ("c", 0, "3"))).pieces == [
        ("a: 1", 25, "1"),
        ("b: 3", 75, "2"),
    ]
    assert Stack((("a", 1, "1"),), most=10).pieces == [("a: 1", 10, "1")]


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 100, 5, [0, 20, 40, 60, 80, 100]),
        (2.98, 3.06, 4, [2.98, 3.0, 3.02, 3.04, 3.06]),
        (0.3, 4.2, 4, [0, 1, 2, 3, 4, 5]),
        (5, 5, 2, [5, 7.5, 10]),
    ],
)
def test_nice_ticks(low: float, high: float, count: int, expected: list[float]) -> None:
    assert nice_ticks(low, high, count) == pytest.approx(expected)


def test_short_numbers() -> None:
    assert [short(value) for value in (0, 0.25, 999, 1500, 2_000_000, 1.048e11)] == [
        "0", "0.25", "999", "1.5k", "2M", "104.8B",
    ]  # fmt: skip


def test_a_line_goes_where_its_points_are(template: Path) -> None:
    chart = Chart("test", [Line("a", [(0, 0), (10, 4)], "1")], "x", "y", width=200, height=100)
    # Plot area: 44 to 188 across, 10 to 66 down; the vertical axis covers 0 to 4.
    assert 'd="M44.0 66.0L188.0 10.0"' in render_section(Section("chart", "t", chart), template)


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[-1] == (999.0, 0.5)
    assert thin(points[:50], 100) == points[:50]


def test_logarithmic_axes_and_what_cannot_be_drawn_on_them() -> None:
    points: list[Any] = [(1, 1000), (10, 0), (10, 10), (100, math.nan), (100, 1)]
    chart = Chart("t", [Line("a", points, "1")], "x", "y", width=256, height=100, logarithmic=True)
    # 44 to 244 across for 1 to 100, 10 to 66 down for 1,000 to 1.
    assert chart.drawn[0].path == "M44.0 10.0L144.0 47.3L244.0 66.0"
    assert [label for _, label in chart.x_ticks] == ["1", "10", "100"]
    assert [label for _, label in chart.y_ticks] == ["1", "10", "100", "1k"]


def test_names_at_the_ends_keep_their_distance() -> None:
    assert list(spread([50.0, 51.0, 10.0], 13, 60)) == [47.0, 60.0, 10.0]
    lines = [Line(name, [(0, 1), (1, 0.5)], str(at + 1)) for at, name in enumerate("abc")]
    chart = Chart("t", lines, "x", "y", names_at_ends=True, form=".2f")
    ends = [drawn.end for drawn in chart.drawn if drawn.end is not None]
    assert [label for _, label in ends] == ["a 0.50", "b 0.50", "c 0.50"]
    places = sorted(float(place) for place, _ in ends)
    assert places[-1] <= chart.floor and min(b - a for a, b in pairwise(places)) >= 13


def test_a_chart_says_its_numbers_and_what_it_is(template: Path) -> None:
    lines = [
        Line("a", [(step, step / 8) for step in range(100)], "1"),
        Line("base", [(0, 3)], "b", level=True),
    ]
    chart = Chart("what it shows", lines, "steps", "bits", caption="over", x_most=50, mark=25)
    table = numbers("n", [chart])
    rows = [[str(value) for _, value in row] for row in table.rows]
    assert rows[0] == ["a", "0", "0.000"] and rows[-1] == ["a", "99", "12.375"] and len(rows) == 20
    several = numbers("n", [chart, chart])
    assert [column.title for column in several.columns] == ["chart", "line", "steps", "bits"]
    markup = render_section(Section("chart", "t", chart), template)
    for expected in (
        'role="img" aria-label="what it shows"', "<title>what it shows</title>", "<desc>bits over steps</desc>",
        'class="level cb"', 'class="mark"', "<figcaption>over",
    ):  # fmt: skip
        assert expected in markup
    assert chart.x_axis.high == 50  # what lies beyond is cut off
    assert markup == render_section(Section("chart", "t", chart), template)


def test_an_empty_chart_and_one_point_are_charts() -> None:
    for points in ([], [(5.0, 2.0)]):
        chart = Chart("t", [Line("a", points, "1")], "x", "y")
        assert len(chart.drawn) == len(points) and chart.y_ticks
