"""The report stage: one self-contained page about an experiment, from the JSON the other stages left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tsugiki.evaluation.config import ReportConfig
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.evaluation.pages.benchmarks import benchmarks_section
from tsugiki.evaluation.pages.data import corpus_section, mixture_section, tokenizer_section
from tsugiki.evaluation.pages.model import (
    environment_section,
    export_section,
    headline,
    quality_section,
    samples_section,
)
from tsugiki.evaluation.pages.training import training_section
from tsugiki.experiment.pages.html import page
from tsugiki.experiment.stage import StageContext, StageResult

PAGE_NAME = "index.html"


def run(
    config: ReportConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Write ``index.html``.

    Args:
        config: the report section.
        inputs: directories of the stages, any of which may be missing: the page then says so.
        output_dir: where to write.
        context: name of the experiment.

    Raises:
        DataError: an artefact that is there cannot be read.
    """
    artefacts = Artefacts.load(inputs)
    benchmarks = benchmarks_section(artefacts, config.published)
    sections = [
        quality_section(artefacts, config.published),
        *([benchmarks] if benchmarks is not None else []),
        samples_section(artefacts, config.samples_per_language),
        tokenizer_section(artefacts),
        corpus_section(artefacts),
        mixture_section(artefacts),
        training_section(artefacts),
        export_section(artefacts),
        environment_section(artefacts),
    ]
    title = config.title or context.experiment_name
    subtitle, lead = headline(artefacts)
    (output_dir / PAGE_NAME).write_text(page(title, subtitle, lead, sections), encoding="utf-8")
    return StageResult(counts={"sections": len(sections)}, artifacts=(PAGE_NAME,))
