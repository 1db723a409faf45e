"""The contract of a stage: ``run(config_section, inputs, output_dir, context) -> StageResult``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tsugiki.experiment.tracking.runs import Trackers


@dataclass(frozen=True)
class StageContext:
    """What every stage may use besides its own configuration and inputs.

    Attributes:
        seed: seed of the experiment; every random choice derives from it.
        workers: processes a CPU stage may use.
        tracker: where parameters, metrics and artefacts of this stage are logged.
        experiment_name: name of the experiment, for model cards and titles.
    """

    seed: int = 1234
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    tracker: Trackers = field(default_factory=Trackers)
    experiment_name: str = "experiment"


@dataclass(frozen=True)
class StageResult:
    """What a stage reports back; the files it wrote are found in its output directory.

    Attributes:
        counts: whole numbers and rates for the manifest (documents, tokens, bytes).
        metrics: final metrics, logged to the trackers under ``<group>/<name>``.
        artifacts: files relative to the output directory that go to the trackers
            (reports, plots, configuration), never weights or corpora.
        summary: lines for the console, what a user wants to know at the end of the stage.
    """

    counts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


class StageFunction(Protocol):
    """A stage: reads ``inputs``, writes ``output_dir`` (which exists and may hold resumable work)."""

    def __call__(
        self, config: Any, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
    ) -> StageResult:
        """Run the stage."""
