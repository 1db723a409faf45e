"""What the report reads: the JSON artefacts of the other stages, each of which may be absent."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.evaluation.scoring.bits_per_byte import Score
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage_names import STAGE_NAMES


@dataclass(frozen=True)
class Artefacts:
    """The artefacts of one run.

    Attributes:
        directories: directory of each stage that is there.
        corpus: ``corpus/report.json``.
        tokenizer: ``tokenizer/report.json``.
        mixture: ``tokens/mixture.json``.
        graft: ``graft/graft.json``.
        metrics: lines of ``train/metrics.jsonl``, ascending in step.
        verification: ``export/verify.json``.
        results: ``evaluate/results.json``.
        samples: lines of ``evaluate/samples.jsonl``.
        documents: lines of ``evaluate/documents.jsonl``: the score of each document.
        model: ``train/model.json``.
        pieces: rows of ``tokenizer/pieces.tsv``: id, piece, score, base_ids.
        manifests: manifests of the stages.
    """

    directories: Mapping[str, Path]
    corpus: dict[str, Any] | None
    tokenizer: dict[str, Any] | None
    mixture: dict[str, Any] | None
    graft: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    verification: dict[str, Any] | None
    results: dict[str, Any] | None
    samples: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    model: dict[str, Any] | None
    pieces: list[dict[str, str]]
    manifests: dict[str, Manifest] = field(default_factory=dict)

    @classmethod
    def load(cls, directories: Mapping[str, Path]) -> Artefacts:
        """Read what is there.

        Raises:
            DataError: a file is there but cannot be read.
        """
        there = {name: path for name, path in directories.items() if path.is_dir()}

        def path(stage: str, name: str) -> Path | None:
            found = there[stage] / name if stage in there else None
            return found if found is not None and found.is_file() else None

        manifests = {name: manifest for name in there if (manifest := Manifest.load(there[name])) is not None}
        metrics = [line for line in _lines(path("train", "metrics.jsonl")) if "step" in line]
        return cls(
            directories=there,
            corpus=_document(path("corpus", "report.json")),
            tokenizer=_document(path("tokenizer", "report.json")),
            mixture=_document(path("tokens", "mixture.json")),
            graft=_document(path("graft", "graft.json")),
            metrics=sorted(metrics, key=lambda line: int(line["step"])),
            verification=_document(path("export", "verify.json")),
            results=_document(path("evaluate", "results.json")),
            samples=list(_lines(path("evaluate", "samples.jsonl"))),
            documents=list(_lines(path("evaluate", "documents.jsonl"))),
            model=_document(path("train", "model.json")),
            pieces=_pieces(path("tokenizer", "pieces.tsv")),
            manifests=manifests,
        )

    @property
    def added_rows(self) -> int | None:
        """Rows that the vocabulary stage added to the base (pieces and reserved ones); None when unknown."""
        report = self.tokenizer or {}
        if report.get("pieces") == 0:  # the base's vocabulary is kept; nothing more is reported then
            return 0
        if "base_vocabulary" not in report or "vocabulary_size" not in report:
            return None
        return int(report["vocabulary_size"]) - int(report["base_vocabulary"])

    @property
    def consumed_tokens(self) -> int | None:
        """Tokens trained on; None where they are not logged. Not every line has them: a checkpoint's has not."""
        return max(
            (int(line["consumed_tokens"]) for line in self.metrics if "consumed_tokens" in line), default=None
        )

    def series(self, key: str) -> list[tuple[float, float]]:
        """A metric of training over the tokens consumed (over steps where tokens are not logged)."""
        return [
            (float(line.get("consumed_tokens", line["step"])), float(line[key]))
            for line in self.metrics
            if isinstance(line.get(key), (int, float))
        ]

    def scores(self, language: str, model: str = "result") -> list[Score]:
        """The score of each document of a language."""
        return [
            Score(record[model]["nats"], record[model]["tokens"], record["bytes"], 0)
            for record in self.documents
            if record["language"] == language
        ]

    def validated_languages(self) -> list[str]:
        """Languages with a validation curve, in the order they appear."""
        prefix = "validation/bits_per_byte/"
        names = [key.removeprefix(prefix) for line in self.metrics for key in line if key.startswith(prefix)]
        return list(dict.fromkeys(names))


def run_directories(run_dir: Path) -> dict[str, Path]:
    """Directories of the stages of a run."""
    return {name: run_dir / name for name in STAGE_NAMES if (run_dir / name).is_dir()}


def _document(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "unreadable artefact", where=path, got=error, fix="redo the stage that wrote it"
        ) from error
    if not isinstance(document, dict):
        raise DataError("unreadable artefact", where=path, got=type(document).__name__, expected="an object")
    return document


def _lines(path: Path | None) -> Iterator[dict[str, Any]]:
    if path is None:
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError("unreadable artefact", where=f"{path}, line {number}", got=error) from error
            yield record


def _pieces(path: Path | None) -> list[dict[str, str]]:
    if path is None:
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
