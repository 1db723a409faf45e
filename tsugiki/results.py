"""What a run directory holds, as typed objects: stages, metrics, and the reports of its stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tsugiki.experiment.config.load import read_yaml
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage_names import STAGE_NAMES
from tsugiki.experiment.run.status import RunStatus, StageStatus, metrics_file, read_status

if TYPE_CHECKING:
    from pandas import DataFrame

    from tsugiki.experiment.artefacts.mixture import Mixture
    from tsugiki.experiment.run.verify import Verification


@dataclass(frozen=True)
class Amount:
    """Documents and their UTF-8 bytes of text."""

    documents: int
    bytes: int


@dataclass(frozen=True)
class SourceReport:
    """One source of the corpus: what was read, what was kept, and why the rest was not."""

    name: str
    language: str
    kind: str
    read: Amount
    kept: Amount
    train: Amount
    heldout: Amount
    dropped: Mapping[str, Amount]
    """Rule -> what it dropped."""


@dataclass(frozen=True)
class CorpusReport:
    """``corpus/report.json``."""

    sources: Mapping[str, SourceReport]
    values: Mapping[str, Any]
    """The whole file."""

    @classmethod
    def load(cls, directory: Path) -> CorpusReport:
        """Read the report of a corpus directory.

        Raises:
            DataError: it is not there or unreadable.
        """
        path = directory / "report.json"
        values = _json(path, "corpus")
        with _fields_of(path):
            sources = TypeAdapter(list[SourceReport]).validate_python(values["sources"])
            return cls({source.name: source for source in sources}, values)

    def table(self) -> DataFrame:
        """A row a source."""
        rows = {
            name: {
                "language": source.language,
                "kind": source.kind,
                **{
                    f"{key}_{unit}": getattr(getattr(source, key), unit)
                    for key in ("read", "kept", "train", "heldout")
                    for unit in ("documents", "bytes")
                },
            }
            for name, source in self.sources.items()
        }
        return _frame(rows, "source")

    def dropped(self) -> DataFrame:
        """Documents dropped: a row a rule, a column a source."""
        columns = {
            name: {rule: amount.documents for rule, amount in source.dropped.items()}
            for name, source in self.sources.items()
        }
        rules = sorted({rule for column in columns.values() for rule in column})
        rows = {rule: {name: column.get(rule, 0) for name, column in columns.items()} for rule in rules}
        return _frame(rows, "rule")

    def __repr__(self) -> str:
        kept = sum(source.kept.documents for source in self.sources.values())
        read = sum(source.read.documents for source in self.sources.values())
        return f"CorpusReport({len(self.sources)} sources, {kept:,} of {read:,} documents kept)"


@dataclass(frozen=True)
class VocabularyReport:
    """``tokenizer/report.json``."""

    directory: Path
    """Where the tokenizer is."""
    base_vocabulary: int
    vocabulary_size: int
    pieces: int
    """Pieces added."""
    pieces_by_language: Mapping[str, int]
    gates: Mapping[str, bool]
    """Gate -> passed."""
    tokens_relative_to_base: Mapping[str, float]
    """Language -> tokens of its held-out text, those of the base vocabulary being 1."""
    values: Mapping[str, Any]
    """The whole file."""

    @classmethod
    def load(cls, directory: Path) -> VocabularyReport:
        """Read the report of a tokenizer directory.

        Raises:
            DataError: it is not there or unreadable, e.g. because the vocabulary was not extended.
        """
        path = directory / "report.json"
        values = _json(path, "tokenizer")
        with _fields_of(path):
            relative = values["tokens_relative_to_base"].items()
            found = {
                **{key: values[key] for key in ("base_vocabulary", "vocabulary_size", "pieces")},
                "pieces_by_language": values["pieces_by_language"],
                "gates": {gate["name"]: gate["passed"] for gate in values["gates"]},
                "tokens_relative_to_base": {name: value for name, value in relative if value is not None},
            }
            return TypeAdapter(cls).validate_python({"directory": directory, "values": values, **found})

    def table(self) -> DataFrame:
        """A row a tokenizer and language: tokens, fertility, byte fallback, …"""
        import pandas

        with _fields_of(self.directory / "report.json"):
            rows = [
                {"tokenizer": name, "language": language, **measured}
                for name, languages in self.values["tokenizers"].items()
                for language, measured in languages.items()
            ]
            return pandas.DataFrame(rows).set_index(["tokenizer", "language"])

    def __repr__(self) -> str:
        passed = sum(self.gates.values())
        return (
            f"VocabularyReport({self.base_vocabulary:,} + {self.pieces:,} pieces = {self.vocabulary_size:,} rows, "
            f"{passed} of {len(self.gates)} gates passed)"
        )


@dataclass(frozen=True)
class LanguageResult:
    """Base against result on the held-out text of one language."""

    language: str
    documents: int
    base: float
    """Bits per byte."""
    result: float
    """Bits per byte."""
    difference: float
    """Result minus base; below 0 is better."""
    interval: tuple[float, float] | None
    """Of the difference, by the bootstrap over documents."""


@dataclass(frozen=True)
class Evaluation:
    """``evaluate/results.json``."""

    languages: Mapping[str, LanguageResult]
    values: Mapping[str, Any]
    """The whole file: perplexities, benchmarks, protocol."""

    @classmethod
    def load(cls, directory: Path) -> Evaluation:
        """Read the results of an evaluate directory.

        Raises:
            DataError: they are not there or unreadable.
        """
        path = directory / "results.json"
        values = _json(path, "evaluate")
        with _fields_of(path):
            languages = {
                language: {
                    "language": language,
                    "documents": values["documents"][language],
                    "base": base,
                    "result": values["result"]["bits_per_byte"][language],
                    "difference": values["difference"][language]["bits_per_byte"],
                    "interval": values["difference"][language].get("interval"),
                }
                for language, base in values["base"]["bits_per_byte"].items()
            }
            return cls(TypeAdapter(dict[str, LanguageResult]).validate_python(languages), values)

    def table(self) -> DataFrame:
        """A row a language."""
        rows = {
            name: {
                "documents": item.documents,
                "base": item.base,
                "result": item.result,
                "difference": item.difference,
                "low": None if item.interval is None else item.interval[0],
                "high": None if item.interval is None else item.interval[1],
            }
            for name, item in self.languages.items()
        }
        return _frame(rows, "language")

    def __repr__(self) -> str:
        better = sum(item.difference < 0 for item in self.languages.values())
        return f"Evaluation({len(self.languages)} languages, fewer bits per byte than the base in {better})"


@dataclass(frozen=True)
class Run:
    """A run directory, finished or not. What is asked for is read then; nothing is written."""

    directory: Path

    def status(self) -> RunStatus:
        """The state of every stage, read anew."""
        return read_status(self.directory)

    def verify(self, *, show: bool = False) -> Verification:
        """Compare every file of finished stages and every checkpoint with its recorded sha256.

        Args:
            show: progress on standard error.
        """
        from tsugiki.experiment.run.verify import verify_run

        return verify_run(self.directory, show=show)

    @property
    def stages(self) -> dict[str, StageStatus]:
        """Stage -> state: complete, partial, damaged or absent."""
        return {stage.name: stage for stage in self.status().stages}

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Stage -> manifest, of complete stages."""
        found = {name: Manifest.load(self.directory / name) for name in STAGE_NAMES}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was last started with; ``load_experiment(run.config_file)`` opens it."""
        return read_yaml(self.config_file).values

    @property
    def config_file(self) -> Path:
        """``config.yaml``, with every default written out."""
        return self.directory / "config.yaml"

    def metrics(self, prefix: str = "") -> DataFrame:
        """Metrics of the training, a row a logged step; also while it goes on.

        Args:
            prefix: of the columns wanted, e.g. ``validation/bits_per_byte/``; what no step has is left out.

        Raises:
            DataError: training has not logged anything.
        """
        import pandas

        path = metrics_file(self.directory)
        if path is None:
            raise _missing(self.directory / "train" / "metrics.jsonl", "train")
        records = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the line that is being written
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        frame = pandas.DataFrame(records)
        if frame.empty:
            raise _missing(path, "train")
        # A step may stand on several lines: its log, its validation, and again after a restart; the last one counts.
        frame = frame.groupby("step").last().sort_index()
        return frame[[name for name in frame.columns if name.startswith(prefix)]].dropna(how="all")

    @property
    def corpus_report(self) -> CorpusReport:
        """What the corpus stage read, kept and dropped."""
        return CorpusReport.load(self.directory / "corpus")

    @property
    def tokenizer_report(self) -> VocabularyReport:
        """What the vocabulary extension is worth."""
        return VocabularyReport.load(self.directory / "tokenizer")

    @property
    def mixture(self) -> Mixture:
        """What training reads, in which shares."""
        from tsugiki.experiment.artefacts.mixture import Mixture

        return Mixture.load(self.directory / "tokens")

    @property
    def evaluation(self) -> Evaluation:
        """Base against result."""
        return Evaluation.load(self.directory / "evaluate")

    @property
    def page(self) -> Path:
        """The report to open in a browser.

        Raises:
            DataError: the report stage has not run.
        """
        path = self.directory / "report" / "index.html"
        if not path.is_file():
            raise _missing(path, "report")
        return path

    def __repr__(self) -> str:
        stages = self.stages.values()
        complete = sum(stage.state == "complete" for stage in stages)
        return f"Run('{self.directory}', {complete} of {len(stages)} stages complete)"


def open_run(run_dir: Path | str) -> Run:
    """Open a run directory.

    Raises:
        ConfigError: there is no run here.
    """
    run = Run(Path(run_dir))
    run.status()
    return run


def _json(path: Path, stage: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _missing(path, stage) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("unreadable report", where=path, got=error) from error
    if not isinstance(values, dict):
        raise DataError("unreadable report", where=path, got=type(values).__name__, expected="a JSON object")
    return values


@contextmanager
def _fields_of(path: Path) -> Iterator[None]:
    """What a report lacks, or has of another type, as an error that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            "unreadable report",
            where=path,
            got=f"{type(error).__name__}: {error}",
            expected="the fields that the stage writes",
            fix="run the stage anew with --force",
        ) from error


def _missing(path: Path, stage: str) -> DataError:
    return DataError(
        f"the run has no result of the stage '{stage}'",
        where=path,
        fix=f"run it: experiment.run(until='{stage}')",
    )


def _frame(rows: Mapping[str, Mapping[str, Any]], index: str) -> DataFrame:
    import pandas

    return pandas.DataFrame.from_dict(dict(rows), orient="index").rename_axis(index)
