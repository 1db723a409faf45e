"""The model card of an exported model: README.md with the metadata block the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.pretrain.conversion.trained_model import TrainedModel
from tsugiki.pretrain.convert_config import ExportConfig

CARD_NAME = "README.md"
_FRONT_MATTER_CHARACTERS = 64_000
_NAME_CHARACTERS = 200
_PATH_BEGINS = ("/", ".", "~", "\\")


def write_card(
    output_dir: Path,
    config: ExportConfig,
    model: TrainedModel,
    inputs: Mapping[str, Path],
    title: str,
    verification: Mapping[str, Any],
) -> None:
    """Write the card from what the run knows; sections without facts are left out.

    Args:
        output_dir: Hugging Face directory.
        config: names of base model and licence.
        model: the exported checkpoint.
        inputs: any of base, tokenizer, tokens, corpus, train.
        title: name of the experiment.
        verification: contents of ``verify.json``.
    """
    base = _front_matter(inputs["base"] / CARD_NAME) if "base" in inputs else {}
    mixture = Mixture.load(inputs["tokens"]) if "tokens" in inputs else None
    licence = _stated(config.license, base.get("license"))
    origin = _origin(config, model, inputs.get("base"), _stated(base.get("base_model")))
    languages = list(dict.fromkeys(source.language for source in mixture.sources)) if mixture else []
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if languages:
        metadata["language"] = languages
    if licence:
        metadata["license"] = licence
    if origin.hub_name:
        metadata["base_model"] = origin.hub_name
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_markdown(title)}",
        "",
    ]
    lines += _facts(model, origin.shown, licence, mixture)
    if "corpus" in inputs and mixture is not None:
        lines += _data_table(mixture, CorpusIndex.load(inputs["corpus"]))
    if "tokenizer" in inputs:
        lines += _tokenizer_table(inputs["tokenizer"])
    if "train" in inputs:
        lines += _evaluation_table(inputs["train"] / "metrics.jsonl", model.iteration)
    lines += _verification(verification)
    (output_dir / CARD_NAME).write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Origin:
    """What the model was made from, as far as it is known.

    Attributes:
        shown: for people.
        hub_name: its name on a hub, where one was given; None otherwise, as the hub makes a link of it.
    """

    shown: str
    hub_name: str | None = None


def _origin(
    config: ExportConfig, model: TrainedModel, base_dir: Path | None, bases_own: str | None
) -> _Origin:
    """The base by the name that the configuration or its own files give it, else by its folder; nothing is guessed."""
    name = _stated(config.base_model, model.hf_config.get("_name_or_path"))
    if name and not name.startswith(_PATH_BEGINS):
        return _Origin(name, name)
    if base_dir is None:
        return _Origin(_folder(Path(name)).shown if name else "not stated")
    manifest = Manifest.load(base_dir)
    if manifest is not None and manifest.stage == "base":
        return _Origin("none: trained from random weights in this experiment")
    found = _folder(base_dir.resolve())
    if bases_own and found.hub_name is None:
        return _Origin(f"{found.shown}, whose own base is {bases_own}")
    return found


def _folder(path: Path) -> _Origin:
    """A folder's name; in the cache of the hub the name of the repository (``models--owner--name/snapshots/…``)."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        name = path.parent.parent.name.removeprefix("models--").replace("--", "/")
        return _Origin(name, name)
    return _Origin(f"{path.name} (a local folder)")


def _front_matter(path: Path) -> dict[str, Any]:
    """Metadata block of a model card; empty when there is none."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as stream:
        text = stream.read(_FRONT_MATTER_CHARACTERS)
    if not text.startswith("---\n"):
        return {}
    text = text[4:].split("\n---", 1)[0]
    try:
        # Aliases multiply what a few lines hold.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            return {}
        loaded = yaml.safe_load(text)
    # Impossible dates and numbers are ValueErrors.
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _stated(*values: Any) -> str | None:
    """The first value that is text, on one line; a list gives its first item. The base's files say what they like."""
    for value in values:
        text = value[0] if isinstance(value, list) and value else value
        if isinstance(text, str) and (text := _one_line(text)):
            return text[:_NAME_CHARACTERS]
    return None


def _one_line(text: str) -> str:
    return " ".join("".join(item if item.isprintable() else " " for item in text).split())


def _markdown(text: str) -> str:
    """Text as a line of Markdown that shows it: no markup, no HTML, no further cell of a table."""
    return re.sub(r"[\\`*<>\[\]|&]", lambda found: "\\" + found[0], _one_line(text))


def _facts(model: TrainedModel, base: str, licence: str | None, mixture: Mixture | None) -> list[str]:
    spec = model.spec
    kind = f"{spec.family}, {spec.layers} layers, width {spec.hidden_size}, {spec.heads} heads"
    rows: list[tuple[str, str]] = [
        ("Base model", base),
        ("Licence", licence or "not stated by the base model"),
        ("Architecture", f"{kind} ({spec.kv_heads} key/value)"),
        ("Parameters", f"{spec.parameters:,}"),
        ("Vocabulary", f"{spec.vocabulary_size:,}"),
        ("Positions", f"{spec.max_positions:,}"),
    ]
    if model.iteration is not None:
        rows.append(("Training step", f"{model.iteration:,}"))
    tokens = model.facts.get("consumed_tokens", mixture.total_tokens if mixture is not None else None)
    if tokens is not None:
        rows.append(("Tokens of continued pretraining", f"{tokens:,}"))
    return [*markdown_table(("", ""), rows), ""]


def _data_table(mixture: Mixture, corpus: CorpusIndex) -> list[str]:
    kept = {source.name: source for source in corpus.sources}
    rows = [
        (
            source.name,
            source.language,
            f"{kept[source.name].train_documents:,}" if source.name in kept else "",
            f"{source.bytes:,}",
            f"{source.tokens:,}",
            f"{100 * source.share:.1f} %",
            f"{source.epochs:.2f}",
        )
        for source in mixture.sources
    ]
    header = ("Source", "Language", "Documents", "Bytes", "Tokens", "Share of tokens", "Epochs")
    return ["## Training data", "", *markdown_table(header, rows), ""]


def _tokenizer_table(tokenizer_dir: Path) -> list[str]:
    """Tokens per byte before and after, per language, from the report of the tokenizer stage."""
    path = tokenizer_dir / "report.json"
    if not path.is_file():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    tokenizers = report.get("tokenizers", {})
    if not tokenizers:
        return []
    names = list(tokenizers)
    languages = list(dict.fromkeys(language for name in names for language in tokenizers[name]))
    rows = []
    for language in languages:
        cells = [tokenizers[name].get(language, {}).get("tokens_per_character") for name in names]
        rows.append((language, *(f"{cell:.3f}" if cell is not None else "" for cell in cells)))
    return ["## Tokenizer", "", "Tokens per character:", "", *markdown_table(("Language", *names), rows), ""]


def _evaluation_table(metrics: Path, iteration: int | None) -> list[str]:
    """Bits per byte on held-out text, first and last validation up to the exported step."""
    if not metrics.is_file():
        return []
    prefix = "validation/bits_per_byte/"
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if iteration is not None and entry.get("step", 0) > iteration:
            break
        for key, value in entry.items():
            if key.startswith(prefix):
                first.setdefault(key.removeprefix(prefix), value)
                last[key.removeprefix(prefix)] = value
    if not last:
        return []
    rows = [(language, f"{first[language]:.3f}", f"{value:.3f}") for language, value in sorted(last.items())]
    title = "Bits per byte on held-out text (lower is better; comparable across vocabularies):"
    header = ("Language", "First validation", "Exported step")
    return ["## Evaluation", "", title, "", *markdown_table(header, rows), ""]


def _verification(verification: Mapping[str, Any]) -> list[str]:
    logits = verification.get("logits")
    if not isinstance(logits, Mapping):
        return []
    return [
        "## Verification",
        "",
        f"Logits in fp32 over {logits['tokens']} tokens, transformers against the training framework: "
        f"largest difference {logits['max_difference']:.2g}, same most likely token in "
        f"{100 * logits['argmax_agreement']:.1f} % of the positions.",
        "",
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table whose cells show what they are given, whatever that is."""
    lines = [f"| {' | '.join(map(_markdown, header))} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(map(_markdown, row))} |" for row in rows)]
