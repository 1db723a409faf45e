"""Runs and studies while they go on: text for a terminal with curves, read from files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.results import Run
from tsugiki.slurm.jobs import status as read_status
from tsugiki.study.local import STATE_NAME

if TYPE_CHECKING:
    from pandas import DataFrame

    from tsugiki.experiment.run.status import RunStatus

CURVES = ("train/loss", "validation/bits_per_byte/", "throughput/tokens_per_second")
"""Metrics that are drawn; one that ends in a slash stands for all that begin so."""
_WIDTH, _HEIGHT = 60, 6
# Dots of a braille character: bit of (row, column), from above.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def curve(points: Sequence[tuple[float, float]], width: int = _WIDTH, height: int = _HEIGHT) -> list[str]:
    """A curve in braille characters, lines of text from above; each column is the mean of the points in it.

    >>> curve([(0, 0.0), (1, 1.0)], width=2, height=1)
    ['⡀⠈']
    """
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if not points:
        return []
    (left, right), values = (points[0][0], points[-1][0]), [y for _, y in points]
    low, high = min(values), max(values)
    columns: dict[int, list[float]] = {}
    for x, y in points:
        columns.setdefault(round((x - left) / ((right - left) or 1) * (2 * width - 1)), []).append(y)
    cells = [[0] * width for _ in range(height)]
    for column, found in columns.items():
        share = (sum(found) / len(found) - low) / ((high - low) or 1)
        row = round((1 - share) * (4 * height - 1))
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


def series(metrics: DataFrame | None) -> dict[str, list[tuple[float, float]]]:
    """Metric -> (step, value), of those in :data:`CURVES`."""
    if metrics is None:
        return {}
    names = [
        name for wanted in CURVES for name in metrics.columns
        if name == wanted or (wanted.endswith("/") and name.startswith(wanted))
    ]  # fmt: skip
    return {
        name: [(float(step), float(value)) for step, value in metrics[name].dropna().items()]
        for name in names
    }


def metrics_of(run_dir: Path) -> DataFrame | None:
    """Metrics of a run's training so far, None before it logged anything."""
    try:
        return Run(run_dir).metrics()
    except DataError:
        return None


def screen(folder: Path) -> tuple[str, bool]:
    """What a terminal shows of a run or a study, and whether nothing more will change.

    Raises:
        ConfigError: there is neither here.
    """
    if (folder / STATE_NAME).is_file():
        return _study_screen(folder)
    status = read_status(folder)
    lines = [status.to_text()]
    for name, points in series(metrics_of(folder)).items():
        drawn = curve(points)
        if len(points) > 1 and drawn:
            values = [y for _, y in points]
            lines += [
                "",
                f"  {name}  {values[-1]:.4g}  (from {min(values):.4g} to {max(values):.4g}, step {points[-1][0]:.0f})",
            ]
            lines += [f"  {line}" for line in drawn]
    return "\n".join(lines), is_over(status)


def is_over(status: RunStatus) -> bool:
    """Whether all stages are complete."""
    return all(stage.state == "complete" for stage in status.stages)


def study_state(folder: Path) -> dict[str, dict[str, Any]]:
    """Trial -> its state, as the study wrote it.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / STATE_NAME
    try:
        trials = json.loads(path.read_bytes())["trials"]
        return {
            str(name): {"state": str(trial["state"]), "detail": str(trial["detail"])}
            for name, trial in trials.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            "the state of the study is damaged", where=path, got=error, fix="run the study again"
        ) from error


def _study_screen(folder: Path) -> tuple[str, bool]:
    trials = study_state(folder)
    lines = [
        f"{folder}: {sum(trial['state'] == 'done' for trial in trials.values())} of {len(trials)} trials done"
    ]
    for name, trial in trials.items():
        lines.append(f"  {trial['state']:<9}{name}  {trial['detail']}".rstrip())
        found = series(metrics_of(folder / name)) if trial["state"] == "running" else {}
        for metric, points in found.items():
            if len(points) > 1:
                lines.append(f"           {curve(points, 30, 1)[0]}  {metric} {points[-1][1]:.4g}")
    return "\n".join(lines), all(trial["state"] in ("done", "failed", "blocked") for trial in trials.values())
