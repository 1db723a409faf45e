"""The vocabulary stage: sample, learn, select, merge, check the gates, report."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.artefacts.pieces import AddedPiece, write_pieces
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.experiment.text.hf_tokenizer import write_hf_tokenizer
from tsugiki.tokenizer.base.base import BaseTokenizer, load_base
from tsugiki.tokenizer.base.byte_level import ByteLevelEncoder
from tsugiki.tokenizer.base.merge import merge_sentencepiece, padded_size, write_proto
from tsugiki.tokenizer.base.sample import require_languages
from tsugiki.tokenizer.config import ExtendConfig, TokenizerConfig
from tsugiki.tokenizer.gates.check import check
from tsugiki.tokenizer.gates.gate import Gate, GateInputs, enforce
from tsugiki.tokenizer.learning.byte_level import merged_document, write_byte_level
from tsugiki.tokenizer.learning.extension import Extension, learn_extension
from tsugiki.tokenizer.learning.size import best_size, held_out_curve
from tsugiki.tokenizer.learning.text import CorpusText

_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


def run(
    config: TokenizerConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Extend the vocabulary of ``inputs["base"]`` on the text of ``inputs["corpus"]``.

    Raises:
        ConfigError: a base that cannot be extended, or an impossible request.
        DataError: no usable text, a corrupt base, or a failed gate.
    """
    corpus = CorpusText(CorpusIndex.load(inputs["corpus"]), inputs["corpus"], context.seed)
    base = load_base(inputs["base"])
    if config.extend is None:
        return _keep(base, output_dir)
    extend = config.extend
    clock = _Clock()
    require_languages(corpus.index, extend.languages)
    wanted = extend.size if isinstance(extend.size, int) else extend.auto.maximum
    extension = learn_extension(extend, base, corpus, wanted, context.workers)
    clock.lap("learning")
    texts = {
        language: corpus.lines(language, config.report_bytes_per_language) for language in extend.languages
    }
    curve = held_out_curve(base, extension.pieces, {key: lines for key, lines in texts.items() if lines})
    if extend.size == "auto":
        chosen = best_size(curve, base, extend)
        extension.pieces = extension.pieces[:chosen]
        extension.facts["auto_size"] = chosen
    counted = Counter(piece.language for piece in extension.pieces if piece.language)
    extension.facts["pieces_by_language"] = {language: counted[language] for language in extend.languages}
    clock.lap("curve")
    final_size = padded_size(base.size + len(extension.pieces), extend.multiple_of, extend.tensor_parallel)
    write_merged(base, extension, final_size, output_dir)
    clock.lap("merging")
    gates = _gates(extend, base, extension, final_size, corpus, output_dir)
    clock.lap("gates")
    extension.facts["seconds"] = clock.seconds
    for language in extend.protect:
        texts[language] = corpus.lines(language, config.report_bytes_per_language)
    return _report(base, extension, final_size, gates, texts, curve, output_dir)


class _Clock:
    """Seconds of the steps of the stage, for the report."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the time since the last call under a name."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _keep(base: BaseTokenizer, output_dir: Path) -> StageResult:
    """``extend: null``: the base's own tokenizer."""
    copy_tokenizer(base, output_dir)
    write_pieces(output_dir / "pieces.tsv", [])
    report = {"pieces": 0, "vocabulary_size": base.size, "gates": []}
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return StageResult(
        counts={"base_vocabulary": base.size, "added_pieces": 0, "vocabulary_size": base.size},
        metrics={"tokenizer/vocabulary_size": base.size},
        artifacts=("report.json",),
        summary=(f"vocabulary of the base kept: {base.size:,} rows",),
    )


def copy_tokenizer(base: BaseTokenizer, output_dir: Path) -> None:
    """Copy the tokenizer files of a base; one with only a SentencePiece model gets a ``tokenizer.json``."""
    for name in _TOKENIZER_FILES:
        if (base.directory / name).is_file():
            shutil.copyfile(base.directory / name, output_dir / name)
    if base.document is None:
        write_hf_tokenizer(base.directory / "tokenizer.model", output_dir, inherit_from=base.directory)


def write_merged(base: BaseTokenizer, extension: Extension, final_size: int, output_dir: Path) -> None:
    """Write the merged tokenizer's files and ``pieces.tsv``."""
    surfaces = extension.surfaces
    if base.kind == "sentencepiece":
        proto = merge_sentencepiece(base, surfaces, final_size)
        work = output_dir / ".work"
        work.mkdir(exist_ok=True)
        write_proto(proto, work / "tokenizer.model")
        write_hf_tokenizer(work / "tokenizer.model", output_dir, inherit_from=base.directory)
        names = [piece.piece for piece in proto.pieces]
        scores = [piece.score for piece in proto.pieces]
        parts = base.parts(surfaces)
    else:
        assert base.document is not None
        document = merged_document(base, extension.pieces, final_size)
        write_byte_level(document, base, output_dir)
        by_id = {index: surface for surface, index in document["model"]["vocab"].items()}
        names = [by_id.get(index, "") for index in range(final_size)]
        # Merges have no scores; their rank, negated, orders them in the same way.
        scores = [float(-index) for index in range(final_size)]
        encoder = ByteLevelEncoder(base.document)
        parts = [encoder.ids(surface) for surface in surfaces]
    parts += [[]] * (final_size - base.size - len(surfaces))
    rows = (
        AddedPiece(index, names[index], scores[index], tuple(parts[index - base.size]))
        for index in range(base.size, final_size)
    )
    write_pieces(output_dir / "pieces.tsv", rows)


def _gates(
    extend: ExtendConfig,
    base: BaseTokenizer,
    extension: Extension,
    final_size: int,
    corpus: CorpusText,
    output_dir: Path,
) -> list[Gate]:
    inputs = GateInputs(
        base=base,
        directory=output_dir,
        pieces=extension.surfaces,
        final_size=final_size,
        protected=corpus.protected(extend),
        lines={
            language: corpus.lines(language, extend.gate_bytes_per_language) for language in extend.languages
        },
        is_foreign=extension.is_foreign,
    )
    return enforce(check(inputs), extend.waive)


def _report(
    base: BaseTokenizer,
    extension: Extension,
    final_size: int,
    gates: Sequence[Gate],
    texts: Mapping[str, list[str]],
    curve: tuple[list[int], dict[str, list[float]]],
    output_dir: Path,
) -> StageResult:
    from tsugiki.tokenizer.measure.efficiency import AnyTokenizer
    from tsugiki.tokenizer.report import stage_report

    added = len(extension.pieces)
    passed = f"{sum(item.passed for item in gates)} of {len(gates)}"
    facts = {
        **extension.facts,
        "base_vocabulary": base.size,
        "pieces": added,
        "reserved": final_size - base.size - added,
        "vocabulary_size": final_size,
        "headline": {
            "rows of the base": f"{base.size:,}",
            "pieces added": f"{added:,}",
            "rows in all": f"{final_size:,}",
            "gates passed": passed,
        },
    }
    document = stage_report(
        AnyTokenizer("base", base.directory),
        AnyTokenizer("extended", output_dir),
        {language: lines for language, lines in texts.items() if lines},
        output_dir,
        gates=gates,
        facts=facts,
        curve=curve,
    )
    ratios: dict[str, float] = document["tokens_relative_to_base"]
    metrics = {f"tokenizer/tokens_relative_to_base/{language}": value for language, value in ratios.items()}
    shown = ", ".join(f"{language} {value:.2f}" for language, value in ratios.items())
    return StageResult(
        counts={
            "base_vocabulary": base.size,
            "added_pieces": added,
            "reserved_pieces": final_size - base.size - added,
            "vocabulary_size": final_size,
            "pieces_by_language": extension.facts["pieces_by_language"],
        },
        metrics={**metrics, "tokenizer/vocabulary_size": final_size, "tokenizer/added_pieces": added},
        artifacts=(
            *sorted(p.name for p in output_dir.iterdir() if p.suffix in {".html", ".csv", ".md"}),
            "report.json",
            "pieces.tsv",
        ),
        summary=(
            f"{base.size:,} + {added:,} pieces, {final_size:,} rows; gates: {passed} passed",
            f"tokens relative to the base on held-out text: {shown}",
            *(
                ["the sample holds no more pieces than that: raise sample_bytes or lower minimum_count"]
                if extension.facts.get("exhausted")
                else []
            ),
        ),
    )
