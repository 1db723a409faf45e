"""Figures of the efficiency report, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COLOURS = ["#7f8c9b", "#1f6f5c", "#c8662b", "#4c5fa8", "#8c3b5e", "#b39b2f"]
_INK = "#22303a"
_LABEL_GAP = 0.05


def _axes(width: float = 7.2, height: float = 3.6) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#98a4ad")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(axis="y", color="#e3e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    # No date and version in the file: the same numbers give the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None, "Creation Time": None})
    pyplot.close(figure)
    return path


def bars(values: Mapping[str, Mapping[str, float]], label: str, path: Path) -> Path:
    """Grouped bars: one group per language, one bar per tokenizer.

    Args:
        values: tokenizer -> language -> value.
        label: of the vertical axis.
        path: where to write.
    """
    languages = list(dict.fromkeys(language for row in values.values() for language in row))
    figure, axes = _axes(max(5.0, 0.55 * len(languages) * max(len(values), 2) + 1.5))
    width = 0.8 / max(len(values), 1)
    for number, (name, row) in enumerate(values.items()):
        at = np.arange(len(languages)) + (number - (len(values) - 1) / 2) * width
        heights = [row.get(language, 0.0) for language in languages]
        drawn = axes.bar(at, heights, width * 0.92, label=name, color=_COLOURS[number % len(_COLOURS)])
        if len(languages) * len(values) <= 32:
            axes.bar_label(drawn, fmt="%.2f", fontsize=7, padding=2, color=_INK)
    axes.set_xticks(np.arange(len(languages)), languages)
    axes.set_ylabel(label, color=_INK)
    figure.legend(frameon=False, fontsize=9, ncols=len(values), loc="outside upper left")
    return _save(figure, path)


def ecdf(values: Mapping[str, Mapping[str, NDArray[np.int32]]], path: Path) -> Path:
    """Share of lines that need at most so many tokens; a panel per language.

    Args:
        values: language -> tokenizer -> tokens of each line.
        path: where to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(values))
    rows = -(-len(values) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(2.6 * columns + 0.6, 2.1 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(values) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for axes, (language, series) in zip(grid.flat, values.items(), strict=False):
        for number, (name, tokens) in enumerate(series.items()):
            ordered = np.sort(tokens)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            (handles[name],) = axes.plot(
                ordered, share, color=_COLOURS[number % len(_COLOURS)], linewidth=1.5
            )
        axes.set_xlim(0, max(float(np.quantile(tokens, 0.98)) for tokens in series.values()) or 1)
        axes.set_title(language, fontsize=10, color=_INK, loc="left")
        axes.tick_params(labelsize=7, colors=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e8eb", linewidth=0.6)
    figure.supxlabel("tokens in a line", fontsize=9, color=_INK)
    figure.supylabel("share of lines", fontsize=9, color=_INK)
    figure.legend(
        list(handles.values()),
        list(handles),
        frameon=False,
        fontsize=9,
        ncols=len(handles),
        loc="outside upper left",
    )
    return _save(figure, path)


def curve(
    sizes: Sequence[int], values: Mapping[str, Sequence[float]], path: Path, chosen: int | None = None
) -> Path:
    """Tokens relative to the base against the number of added pieces.

    Args:
        sizes: added pieces.
        values: language -> ratio at each size.
        path: where to write.
        chosen: size to mark.
    """
    figure, axes = _axes()
    from matplotlib import colormaps

    palette = colormaps["tab10"]
    heights = _spread([ratios[-1] for ratios in values.values()], _LABEL_GAP)
    for number, ((language, ratios), height) in enumerate(zip(values.items(), heights, strict=True)):
        colour = palette(number % 10)
        axes.plot(sizes, ratios, color=colour, linewidth=1.6)
        axes.annotate(
            f"{language} {ratios[-1]:.2f}",
            (sizes[-1], ratios[-1]),
            xytext=(sizes[-1] * 1.02, height),
            fontsize=8,
            color=colour,
            va="center",
        )
    if chosen is not None:
        axes.axvline(chosen, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("added pieces", color=_INK)
    axes.set_ylabel("tokens relative to the base", color=_INK)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(0, sizes[-1] * 1.1)
    return _save(figure, path)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights of labels, moved up as far as needed to keep a gap between any two."""
    result = list(heights)
    last = -gap
    for index in sorted(range(len(heights)), key=lambda at: heights[at]):
        result[index] = last = max(heights[index], last + gap)
    return result


def ranks(usage: NDArray[np.int64], path: Path) -> Path:
    """How often added pieces occur, by rank of frequency, on logarithmic axes.

    Args:
        usage: occurrences of each added piece.
        path: where to write.
    """
    figure, axes = _axes()
    ordered = np.sort(usage)[::-1]
    used = ordered[ordered > 0]
    axes.fill_between(np.arange(1, len(used) + 1), used, 0.5, color="#1f6f5c", alpha=0.25)
    axes.plot(np.arange(1, len(used) + 1), used, color="#1f6f5c", linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5, None)
    axes.set_xlabel(
        f"rank among {len(usage):,} added pieces ({len(usage) - len(used):,} do not occur)", color=_INK
    )
    axes.set_ylabel("occurrences", color=_INK)
    return _save(figure, path)
