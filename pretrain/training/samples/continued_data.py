"""What a run that continues from another leaves out: that run's order is built again, and its documents counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.pretrain.training.continuing import Origin, find_origin
from tsugiki.pretrain.training.run import Run, stretches_of
from tsugiki.pretrain.training.samples.batches import TrainingData
from tsugiki.pretrain.training.samples.ledger import (
    FOLDER_NAME,
    LEDGER_NAME,
    Passes,
    agreed,
    comparable_sources,
    load_passes,
    unread,
    write_passes,
)


def read_before(run: Run) -> Passes:
    """Passes over the documents before this run; empty for one that starts from its graft.

    Found once, and kept with the run: the checkpoint that it continues from may be gone later.
    """
    train_dir = run.job.output_dir
    if run.job.continue_from is None or run.config.continue_repeats_data:
        return {}
    if not agreed((train_dir / FOLDER_NAME / LEDGER_NAME).is_file):
        origin = find_origin(run.job.continue_from)
        theirs, reasons = agreed(lambda: comparable_sources(origin, run.mixture, run.job.tokens_dir))
        counts: dict[str, Any] = {}
        if theirs is not None:
            counts = _read_by(origin, theirs, run.job.work_dir / "samples" / "continued")
        agreed(lambda: _keep_ledger(run, counts, reasons))
    return load_passes(train_dir)


def _keep_ledger(run: Run, counts: dict[str, Any], reasons: Mapping[str, str]) -> None:
    said = {}
    kept = {}
    for source in run.mixture.sources:
        if source.name in reasons:
            said[source.name] = f"nothing is left out: {reasons[source.name]}"
        elif source.name in counts:
            kept[source.name] = counts[source.name]
            read = len(kept[source.name]) - len(unread(kept[source.name]))
            said[source.name] = (
                f"{read:,} of {len(kept[source.name]):,} documents were read and come last"
                if read < len(kept[source.name])
                else "all documents were read equally often: they come again"
            )
        else:
            said[source.name] = "nothing of it was read"
    write_passes(run.job.output_dir, kept, said)


def _read_by(origin: Origin, mixture: Mixture, cache_dir: Path) -> dict[str, Any]:
    """Passes over the documents of each source up to the checkpoint that is continued, its own past included."""
    tokens_dir, data = origin.run_dir / "tokens", origin.facts["data"]
    before = load_passes(origin.train_dir)
    shape = (data["global_batch"], data["sequence_length"], data["samples"])
    order = TrainingData(
        mixture,
        tokens_dir,
        cache_dir,
        sequence_length=data["sequence_length"],
        samples=data["samples"],
        seed=origin.facts["seed"],
        stretches=stretches_of(mixture, *shape),
        passes=before,
        conversations=data.get("conversations", "stream"),
    )
    found = order.passes(origin.facts["consumed_samples_by_source"], tokens_dir)
    return {name: sum(counts.get(name, 0) for counts in (before, found)) for name in {*before, *found}}
