"""Section of the report about training: curves in bits per byte."""

from __future__ import annotations

from typing import Any

from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.experiment.pages.charts import Line, line_chart, thin
from tsugiki.experiment.pages.html import Column, Markup, Section, details, facts, join, note, table, tag
from tsugiki.experiment.pages.languages import labelled, language_name


def training_section(artefacts: Artefacts) -> Section:
    """Loss curves in bits per byte."""
    if not artefacts.metrics:
        return Section("training", "Training", note("No train/metrics.jsonl: no curves.", "missing"))
    parts: list[Markup] = [_training_facts(artefacts)]
    train = artefacts.series("train/bits_per_byte")
    axis = "tokens" if "consumed_tokens" in artefacts.metrics[-1] else "steps"
    if train:
        chart = line_chart(
            f"Training loss in bits per byte, from {train[0][1]:.3f} to {train[-1][1]:.3f}",
            [Line("training", thin(train), "r")],
            x_title=axis,
            width=960,
            height=250,
        )
        parts.append(tag("figure", join([tag("figcaption", "Training loss, bits per byte"), chart])))
        rows = [[round(position), f"{value:.3f}"] for position, value in thin(train, 20)]
        columns: list[Column | str] = [axis, "bits per byte"]
        parts.append(details("The same as a table", table("Training loss, bits per byte", columns, rows)))
    languages = artefacts.validated_languages()
    if languages:
        parts.append(_validation(artefacts, languages, axis))
    return Section("training", "Training", join(parts))


def _training_facts(artefacts: Artefacts) -> Markup:
    last = artefacts.metrics[-1]
    pairs: dict[str, Any] = {"steps": last["step"], "tokens": last.get("consumed_tokens")}
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
    return facts(pairs)


def _validation(artefacts: Artefacts, languages: list[str], axis: str) -> Markup:
    curves = {name: artefacts.series(f"validation/bits_per_byte/{name}") for name in languages}
    before = {} if artefacts.results is None else artefacts.results["base"]["bits_per_byte"]
    figures = []
    for name, points in curves.items():
        lines = [Line(f"{language_name(name)} during training", thin(points), "r")]
        if name in before:
            lines.insert(
                0, Line(f"base: {before[name]:.3f}", [(points[0][0], before[name])], "b", level=True)
            )
        caption = join(
            [
                language_name(name),
                tag("span", f" {points[0][1]:.3f} → {points[-1][1]:.3f}", class_="small"),
            ]
        )
        label = f"Bits per byte on held-out {language_name(name)}: {points[0][1]:.3f} to {points[-1][1]:.3f}"
        chart = line_chart(label, lines, x_title=axis, width=330, height=180)
        figures.append(tag("figure", join([tag("figcaption", caption), chart])))
    rows = [
        [labelled(name), f"{points[0][1]:.3f}", f"{points[-1][1]:.3f}", len(points)]
        for name, points in curves.items()
    ]
    return join(
        [
            tag("h3", "Held-out text during training, bits per byte"),
            tag(
                "p",
                "Measured in fixed windows over some of the held-out text, so the figures differ a little "
                "from the table above. The dashed line is the base before any of this, from that table.",
                class_="small",
            ),
            tag("div", join(figures), class_="multiples"),
            details(
                "The same as a table",
                table(
                    "Bits per byte on held-out text during training",
                    [Column("language", numeric=False), "first", "last", "measurements"],
                    rows,
                ),
            ),
        ]
    )
