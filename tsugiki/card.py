"""The model card for a hub: the export's, completed by what later stages and the configuration know.

The export stage writes its card before anything is evaluated. Here are added: tags, the evaluation as ``model-index``,
and sections on licences and filtering of the data, and on what the vocabulary and the training gained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.files import read_json
from tsugiki.pretrain.conversion.model_card import markdown_table
from tsugiki.results import Run

_BEGIN, _END = "---\n", "\n---\n"
TAGS = ("tsugiki", "continued-pretraining", "vocabulary-extension")


def complete_card(run: Run, name: str) -> str:
    """The card of a finished run.

    Args:
        run: with a finished export.
        name: of the model in ``model-index``.

    Raises:
        DataError: no card, or one without metadata.
    """
    path = run.directory / "export" / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, found, body = text.removeprefix(_BEGIN).partition(_END)
    if not text.startswith(_BEGIN) or not found:
        raise DataError(
            "the export has no model card with metadata",
            where=path,
            expected="a README.md that begins with a block between lines of ---",
            fix="run the stage export again: tsugiki run CONFIG --from export --force",
        )
    metadata = yaml.safe_load(head) or {}
    manifests = run.manifests
    extended = _added_pieces(run) > 0
    licence = (run.config.get("export") or {}).get("license")
    if licence and "license" not in metadata:
        metadata["license"] = licence
    metadata["tags"] = [tag for tag in TAGS if tag != "vocabulary-extension" or extended]
    if "evaluate" in manifests and (index := _model_index(run, name)):
        metadata["model-index"] = index
    sections = [body.rstrip(), ""]
    if "corpus" in manifests:
        sections += _data(run)
    if "tokenizer" in manifests:
        sections += _vocabulary(run)
    if "evaluate" in manifests:
        sections += _evaluation(run)
    block = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip()
    return f"{_BEGIN}{block}{_END}" + "\n".join(sections).rstrip() + "\n"


def _model_index(run: Run, name: str) -> list[dict[str, Any]]:
    """Bits per byte by language, in the form that ``huggingface_hub`` writes."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out text ({language})",
            dataset_config=language,
            metric_type="bits_per_byte",
            metric_name="bits per byte (lower is better)",
            metric_value=round(item.result, 4),
        )
        for language, item in run.evaluation.languages.items()
    ]
    found: list[dict[str, Any]] = eval_results_to_model_index(name, results)
    return found


def _data(run: Run) -> list[str]:
    settings = {item["name"]: item for item in (run.config.get("corpus") or {}).get("sources", [])}
    rows = []
    for name, source in run.corpus_report.sources.items():
        worst = sorted(source.dropped.items(), key=lambda item: -item[1].documents)[:3]
        dropped = ", ".join(f"{rule} {amount.documents:,}" for rule, amount in worst) or "none"
        rows.append(
            (
                name, settings.get(name, {}).get("license") or "not stated", f"{source.read.documents:,}",
                f"{source.kept.documents:,}", f"{source.train.documents:,}", f"{source.heldout.documents:,}", dropped,
            )
        )  # fmt: skip
    header = ("Source", "Licence", "Read", "Kept", "Training", "Held out", "Most dropped by")
    return ["## Where the data come from", "", *markdown_table(header, rows), ""]


def _added_pieces(run: Run) -> int:
    path = run.directory / "tokenizer" / "report.json"
    return int(read_json(path).get("pieces", 0)) if path.is_file() else 0


def _vocabulary(run: Run) -> list[str]:
    if not _added_pieces(run):  # the report of the base's own vocabulary says no more than that
        return []
    relative = run.tokenizer_report.tokens_relative_to_base
    if not relative:
        return []
    rows = [(language, f"{value:.3f}", f"{1 / value:.2f} x") for language, value in relative.items() if value]
    header = ("Language", "Tokens, base = 1", "Text in the same context")
    return ["## Efficiency", "", *markdown_table(header, rows), ""]


def _evaluation(run: Run) -> list[str]:
    rows = []
    for language, item in run.evaluation.languages.items():
        interval = "" if item.interval is None else f"{item.interval[0]:+.3f} to {item.interval[1]:+.3f}"
        rows.append((language, f"{item.base:.3f}", f"{item.result:.3f}", f"{item.difference:+.3f}", interval))
    header = ("Language", "Base", "This model", "Difference", "95 % interval")
    title = "Bits per byte of held-out documents (lower is better; comparable across vocabularies):"
    return ["## Against the base", "", title, "", *markdown_table(header, rows), ""]


def metadata_of(card: str) -> Mapping[str, Any]:
    """The metadata block of a card."""
    found: Mapping[str, Any] = yaml.safe_load(card.removeprefix(_BEGIN).partition(_END)[0])
    return found
