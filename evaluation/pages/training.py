"""What the report says about training, the export and how everything was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.experiment.pages.charts import Chart, Line, numbers, thin
from tsugiki.experiment.pages.formats import duration
from tsugiki.experiment.pages.languages import language_name
from tsugiki.experiment.pages.page import Missing
from tsugiki.experiment.pages.tables import (
    Bar,
    Bars,
    Cell,
    Column,
    Language,
    Number,
    Styled,
    Table,
    Verdict,
    bars_column,
    text_columns,
)
from tsugiki.experiment.run.stage_names import STAGE_NAMES


@dataclass(frozen=True)
class Training:
    """Curves in bits per byte.

    Attributes:
        facts: length, speed and shape.
        loss: of training.
        loss_numbers: the same as a table.
        validation: held-out text, a chart for each language.
        validation_numbers: first and last value of each.
        stragglers: nodes with ranks that were slow; None where none was.
    """

    facts: Mapping[str, Cell]
    loss: Chart | None
    loss_numbers: Table | None
    validation: Sequence[Chart]
    validation_numbers: Table | None
    stragglers: Table | None = None


def training(artefacts: Artefacts) -> Training | Missing:
    """Loss curves in bits per byte."""
    if not artefacts.metrics:
        return Missing("No train/metrics.jsonl: no curves.")
    train = artefacts.series("train/bits_per_byte")
    axis = "steps" if artefacts.consumed_tokens is None else "tokens"
    loss = (
        Chart(
            f"Training loss in bits per byte, from {train[0][1]:.3f} to {train[-1][1]:.3f}",
            [Line("training", thin(train), "r")],
            x_title=axis,
            y_title="bits per byte",
            caption="Training loss, bits per byte",
            width=960,
            height=250,
        )
        if train
        else None
    )
    curves = {
        name: artefacts.series(f"validation/bits_per_byte/{name}") for name in artefacts.validated_languages()
    }
    before = {} if artefacts.results is None else artefacts.results["base"]["bits_per_byte"]
    rows: list[list[Cell]] = [
        [Language(name), Number(points[0][1], ".3f"), Number(points[-1][1], ".3f"), len(points)]
        for name, points in curves.items()
    ]
    return Training(
        facts=_facts(artefacts),
        loss=loss,
        loss_numbers=numbers("Training loss, bits per byte", [loss]) if loss else None,
        validation=[_validation(name, points, axis, before.get(name)) for name, points in curves.items()],
        validation_numbers=Table(
            "Bits per byte on held-out text during training",
            [*text_columns("language"), "first", "last", "measurements"],
            rows,
        )
        if rows
        else None,
        stragglers=_stragglers(artefacts.metrics),
    )


def _stragglers(metrics: Sequence[Mapping[str, Any]]) -> Table | None:
    """Each node with the ranks that were ever slow on it, the most windows first."""
    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for line in metrics:
        for slow in line.get("stragglers", []):
            found.setdefault(slow["node"], []).append((line["step"], slow))
    if not found:
        return None
    rows: list[list[Cell]] = [
        [
            node,
            ", ".join(str(rank) for rank in sorted({rank for _, slow in seen for rank in slow["ranks"]})),
            len(seen),
            Number(max(slow["times_median"] for _, slow in seen), ".2f"),
            f"{seen[0][0]} to {seen[-1][0]}",
            "waiting for data" if all(slow["waits_for_data"] for _, slow in seen) else "own passes",
        ]
        for node, seen in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    return Table(
        "Nodes that were slower than the others",
        [
            *text_columns("node", "ranks"),
            "log windows it was named in",
            "at worst, times the median",
            *text_columns("at steps", "in"),
        ],
        rows,
        caption_shown=True,
    )


def _facts(artefacts: Artefacts) -> dict[str, Cell]:
    last = artefacts.metrics[-1]
    pairs: dict[str, Cell] = {"steps": last["step"], "tokens": artefacts.consumed_tokens}
    speed = [value for _, value in artefacts.series("throughput/tokens_per_second")]
    if speed:
        pairs["tokens per second (median)"] = round(sorted(speed)[len(speed) // 2])
    config = artefacts.manifests["train"].config if "train" in artefacts.manifests else None
    if config:
        parallel = config.get("parallel") or {}
        layout = " × ".join(
            f"{name} {parallel[name]}"
            for name in ("tensor", "pipeline", "context", "data")
            if (parallel.get(name) or 1) > 1
        )
        if layout:
            pairs["parallel layout"] = layout
        for name in ("sequence_length", "global_batch", "precision"):
            if config.get(name) is not None:
                pairs[name.replace("_", " ")] = config[name]
    if artefacts.model:
        names = {"family": "architecture", "layers": "layers", "hidden_size": "hidden size"}
        pairs.update({title: artefacts.model[key] for key, title in names.items() if key in artefacts.model})
    return pairs


def _validation(
    language: str, points: Sequence[tuple[float, float]], axis: str, before: float | None
) -> Chart:
    name = language_name(language)
    first, last = points[0][1], points[-1][1]
    lines = [Line(f"{name} during training", thin(points), "r")]
    if before is not None:
        lines.insert(0, Line(f"base: {before:.3f}", [(points[0][0], before)], "b", level=True))
    return Chart(
        f"Bits per byte on held-out {name}: {first:.3f} to {last:.3f}",
        lines,
        x_title=axis,
        y_title="bits per byte",
        caption=name,
        detail=f"{first:.3f} → {last:.3f}",
        width=330,
        height=180,
    )


@dataclass(frozen=True)
class Export:
    """Whether the exported model is the trained one, and what was measured to say so."""

    verdict: Verdict
    facts: Mapping[str, Cell]


def export(artefacts: Artefacts) -> Export | Missing:
    """Whether the exported model is the trained one."""
    checked = artefacts.verification
    if checked is None:
        return Missing("No export/verify.json: the exported model was not verified.")
    passed = _within_tolerance(artefacts, checked)
    word = {True: "verified", False: "does not agree", None: "measured"}[passed]
    return Export(Verdict(passed, word), dict(_flattened(checked)))


def _within_tolerance(artefacts: Artefacts, checked: Mapping[str, Any]) -> bool | None:
    """Whether the logits agree as well as the configuration asks; None when that is not known."""
    difference = checked.get("logits", {}).get("max_difference")
    manifest = artefacts.manifests.get("export")
    tolerance = None if manifest is None else (manifest.config or {}).get("verify_tolerance")
    return None if difference is None or tolerance is None else difference <= tolerance


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Cell]]:
    """Numbers and words of a nested mapping under readable names; lists are left out."""
    found: list[tuple[str, Cell]] = []
    for key, value in values.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            found.extend(_flattened(value, name))
        elif not isinstance(value, list) and key not in ("passed", "schema_version"):
            found.append((name, Number(value, ".3g") if isinstance(value, float) else value))
    return found


@dataclass(frozen=True)
class Making:
    """Stages with their time, versions, and (stage, configuration)."""

    stages: Table
    versions: Mapping[str, Cell]
    configurations: Sequence[tuple[str, str]]


def making(artefacts: Artefacts) -> Making | Missing:
    """Stages with their time, versions, configuration."""
    if not artefacts.manifests:
        return Missing("No manifests: stages were run outside an experiment.")
    manifests = {name: artefacts.manifests[name] for name in STAGE_NAMES if name in artefacts.manifests}
    longest = max(manifest.seconds for manifest in manifests.values())
    last = list(manifests.values())[-1]
    return Making(
        Table(
            "Stages and the time they took",
            [
                *text_columns("stage"),
                bars_column(""),
                "time",
                "started (UTC)",
                Column("content", numeric=False, hint="hash of the stage's output"),
            ],
            [
                [
                    name,
                    Bars((Bar(manifest.seconds, longest),)),
                    duration(manifest.seconds),
                    manifest.started.replace("T", " ")[:19],
                    Styled(manifest.digest[:12], "code"),
                ]
                for name, manifest in manifests.items()
            ],
        ),
        {"git revision": last.git_revision, **last.versions},
        [
            (name, json.dumps(manifest.config, indent=2, ensure_ascii=False))
            for name, manifest in manifests.items()
            if manifest.config
        ],
    )
