"""The report stage: one self-contained page about an experiment, from the JSON the other stages left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tsugiki.evaluation.config import ReportConfig
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.evaluation.pages.benchmarks import benchmarks
from tsugiki.evaluation.pages.data import corpus, mixture, vocabulary
from tsugiki.evaluation.pages.quality import headline, quality, samples
from tsugiki.evaluation.pages.training import export, making, training
from tsugiki.experiment.pages.page import Page, Section, render
from tsugiki.experiment.run.stage import StageContext, StageResult

PAGE_NAME = "index.html"
TEMPLATE = Path(__file__).parent / "pages" / "run.html.jinja"


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
    sections = [
        Section("quality", "Base against result", quality(artefacts, config.published)),
        Section("benchmarks", "Benchmarks", benchmarks(artefacts, config.published) or None),
        Section("samples", "Samples", samples(artefacts, config.samples_per_language)),
        Section("vocabulary", "Vocabulary", vocabulary(artefacts)),
        Section("corpus", "Corpus", corpus(artefacts)),
        Section("mixture", "Training mixture", mixture(artefacts)),
        Section("training", "Training", training(artefacts)),
        Section("export", "Export", export(artefacts)),
        Section("environment", "How it was made", making(artefacts)),
    ]
    subtitle, cards = headline(artefacts)
    page = Page(config.title or context.experiment_name, subtitle, sections, cards)
    (output_dir / PAGE_NAME).write_bytes(render(page, TEMPLATE))
    return StageResult(counts={"sections": len(page.shown)}, artifacts=(PAGE_NAME,))
