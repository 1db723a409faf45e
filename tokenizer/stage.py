"""The vocabulary stage: sample, learn, select, merge, check the gates, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.corpus_index import CorpusIndex
from experiment.errors import DataError
from experiment.hf_tokenizer import write_hf_tokenizer
from experiment.progress import Progress
from experiment.stage import StageContext, StageResult
from tokenizer.base import BaseTokenizer, load_base
from tokenizer.code_sample import CODE_SAMPLE
from tokenizer.config import ExtendConfig, TokenizerConfig
from tokenizer.gates import Gate, GateInputs, check_sentencepiece, enforce
from tokenizer.learn import MergeLearner
from tokenizer.pieces import AddedPiece, write_pieces
from tokenizer.sample import available_bytes, byte_budgets, draw, normalise, require_languages
from tokenizer.scripts import ScriptRule, scripts_of
from tokenizer.segments import PieceJudge, build_segments, count_runs
from tokenizer.sentencepiece_trainer import train_candidates
from tokenizer.vocabulary import (
    merge_sentencepiece,
    neighbour_concatenations,
    padded_size,
    select_reachable,
    write_proto,
)

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


@dataclass(frozen=True)
class CorpusText:
    """The corpus with what the stage needs to read from it."""

    index: CorpusIndex
    directory: Path
    seed: int

    def lines(self, language: str, budget_bytes: int, split: str = "heldout") -> list[str]:
        """Non-empty lines of a language within a byte budget."""
        texts = draw(self.index, self.directory, language, budget_bytes, split, self.seed)  # type: ignore[arg-type]
        return [line for text in texts for line in text.split("\n") if line.strip()]


def run(
    config: TokenizerConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Extend the vocabulary of ``inputs["base"]`` on the text of ``inputs["corpus"]``.

    Raises:
        ConfigError: a base that cannot be extended, or an impossible request.
        DataError: no usable text, a corrupt base, or a failed gate.
    """
    corpus = CorpusText(CorpusIndex.load(inputs["corpus"]), inputs["corpus"], context.seed)
    if config.extend is None:
        return _keep(inputs["base"], output_dir)
    return _extend(config, config.extend, load_base(inputs["base"]), corpus, output_dir, context)


def _keep(base_dir: Path, output_dir: Path) -> StageResult:
    """``extend: null``: the base's own tokenizer."""
    base = load_base(base_dir)
    copy_tokenizer(base, output_dir)
    write_pieces(output_dir / "pieces.tsv", [])
    report = {"added": 0, "vocabulary_size": base.size, "gates": []}
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


def _extend(
    config: TokenizerConfig,
    extend: ExtendConfig,
    base: BaseTokenizer,
    corpus: CorpusText,
    output_dir: Path,
    context: StageContext,
) -> StageResult:
    started = time.perf_counter()
    require_languages(corpus.index, extend.languages)
    rules = {language: ScriptRule(scripts_of(language, extend.scripts)) for language in extend.languages}
    every_script = ScriptRule(script for rule in rules.values() for script in rule.scripts)
    processor = base.exact_processor()
    protected = protected_lines(extend, corpus)
    forbidden = neighbour_concatenations(
        processor, protected_texts(extend, corpus), every_script.is_foreign
    ) | neighbour_concatenations(
        processor, (line for lines in protected.values() for line in lines), every_script.is_foreign
    )
    target = extend.size if isinstance(extend.size, int) else extend.auto.maximum
    if extend.method == "continued":
        judge = PieceJudge(base, list(rules.values()), forbidden, extend.maximum_piece_characters)
        candidates = _continued_candidates(extend, base, corpus, rules, judge, target, context.workers)
        allowed = candidates
    else:
        candidates = _sentencepiece_candidates(extend, base, corpus, target, context.workers)
        allowed = [
            piece
            for piece in candidates
            if piece not in forbidden and any(rule.allows(piece) for rule in rules.values())
        ]
    pieces = select_reachable(base, allowed, target)
    if not pieces:
        raise DataError(
            "no piece is left to add",
            where="tokenizer.extend",
            got=f"{len(candidates)} candidates, none in the scripts of {', '.join(extend.languages)}",
            fix="check that the corpus holds text in those languages; raise sample_bytes",
        )
    final_size = padded_size(base.size + len(pieces), extend.multiple_of, extend.tensor_parallel)
    proto = merge_sentencepiece(base, pieces, final_size)
    work = output_dir / ".work"
    work.mkdir(exist_ok=True)
    write_proto(proto, work / "tokenizer.model")
    write_hf_tokenizer(work / "tokenizer.model", output_dir, inherit_from=base.directory)
    parts = base.parts(pieces)
    rows = [
        AddedPiece(base.size + offset, piece, proto.pieces[base.size + offset].score, tuple(ids))
        for offset, (piece, ids) in enumerate(zip(pieces, parts, strict=True))
    ]
    rows += [
        AddedPiece(index, proto.pieces[index].piece, 0.0, ())
        for index in range(base.size + len(pieces), final_size)
    ]
    write_pieces(output_dir / "pieces.tsv", rows)
    gates = enforce(
        check_sentencepiece(
            GateInputs(
                base=base,
                directory=output_dir,
                pieces=pieces,
                final_size=final_size,
                protected=protected,
                lines={
                    language: corpus.lines(language, extend.gate_bytes_per_language)
                    for language in extend.languages
                },
                is_foreign=every_script.is_foreign,
            )
        ),
        extend.waive,
    )
    return _report(base, pieces, final_size, gates, corpus, config, output_dir, time.perf_counter() - started)


def protected_texts(extend: ExtendConfig, corpus: CorpusText) -> Any:
    """Training text of the protected languages, streamed."""
    present = [language for language in extend.protect if language in corpus.index.languages]
    for language in present:
        yield from draw(
            corpus.index,
            corpus.directory,
            language,
            extend.protect_bytes // len(present),
            "train",
            corpus.seed,
        )


def protected_lines(extend: ExtendConfig, corpus: CorpusText) -> dict[str, list[str]]:
    """Held-out lines that must not change, by name."""
    found = {language: corpus.lines(language, extend.protect_bytes) for language in extend.protect}
    if extend.protect_code:
        found["code"] = [line for line in CODE_SAMPLE.split("\n") if line.strip()]
    return {name: lines for name, lines in found.items() if lines}


def _continued_candidates(
    extend: ExtendConfig,
    base: BaseTokenizer,
    corpus: CorpusText,
    rules: Mapping[str, ScriptRule],
    judge: PieceJudge,
    target: int,
    workers: int,
) -> list[str]:
    available = available_bytes(corpus.index, extend.languages, "train")
    budgets = byte_budgets(extend.languages, available, extend.sample_bytes)
    runs = {
        language: count_runs(
            draw(corpus.index, corpus.directory, language, budget, "train", corpus.seed),
            rules[language],
            lambda text: normalise(text, extend.normalize),
        )
        for language, budget in budgets.items()
    }
    segments, surfaces, byte_cost = build_segments(
        base, runs, extend.languages, damping=extend.damping, threads=workers
    )
    del runs
    learner = MergeLearner(segments, surfaces, byte_cost, judge, extend.quotas, extend.minimum_count)
    with Progress("learn merges", target, "pieces") as progress:
        learned = learner.learn(target, progress.advance)
    return [item.piece for item in learned.pieces]


def _sentencepiece_candidates(
    extend: ExtendConfig, base: BaseTokenizer, corpus: CorpusText, target: int, workers: int
) -> list[str]:
    available = available_bytes(corpus.index, extend.languages, "train")
    budgets = byte_budgets(extend.languages, available, extend.sample_bytes)

    def lines() -> Any:
        for language, budget in budgets.items():
            for text in draw(corpus.index, corpus.directory, language, budget, "train", corpus.seed):
                yield from normalise(text, extend.normalize).split("\n")

    spec = base.proto.trainer_spec
    return train_candidates(
        lines(),
        int(target * 1.5) + 4000,
        {"split_digits": spec.split_digits, "split_by_unicode_script": True, "split_by_number": True},
        threads=workers,
        maximum_piece_characters=extend.maximum_piece_characters,
    )


def _report(
    base: BaseTokenizer,
    pieces: list[str],
    final_size: int,
    gates: list[Gate],
    corpus: CorpusText,
    config: TokenizerConfig,
    output_dir: Path,
    seconds: float,
) -> StageResult:
    from tokenizer.efficiency import AnyTokenizer
    from tokenizer.report import stage_report

    extend = config.extend
    assert extend is not None
    protect = [item for item in extend.protect if item in corpus.index.languages]
    texts = {
        language: corpus.lines(language, config.report_bytes_per_language)
        for language in [*extend.languages, *protect]
    }
    texts = {language: lines for language, lines in texts.items() if lines}
    reserved = final_size - base.size - len(pieces)
    facts = {
        "base_vocabulary": base.size,
        "pieces": len(pieces),
        "reserved": reserved,
        "vocabulary_size": final_size,
        "seconds": seconds,
        "headline": {
            "rows of the base": f"{base.size:,}",
            "pieces added": f"{len(pieces):,}",
            "rows in all": f"{final_size:,}",
            "gates passed": f"{sum(item.passed for item in gates)} of {len(gates)}",
        },
    }
    document = stage_report(
        AnyTokenizer("base", base.directory),
        AnyTokenizer("extended", output_dir),
        texts,
        output_dir,
        gates=gates,
        facts=facts,
        curve=size_curve(base, pieces, {item: texts[item] for item in extend.languages if item in texts}),
    )
    ratios: dict[str, float] = document["tokens_relative_to_base"]
    metrics = {f"tokenizer/tokens_relative_to_base/{language}": value for language, value in ratios.items()}
    shown = ", ".join(f"{language} {value:.2f}" for language, value in ratios.items())
    return StageResult(
        counts={
            "base_vocabulary": base.size,
            "added_pieces": len(pieces),
            "reserved_pieces": reserved,
            "vocabulary_size": final_size,
        },
        metrics={**metrics, "tokenizer/vocabulary_size": final_size, "tokenizer/added_pieces": len(pieces)},
        artifacts=(
            *sorted(p.name for p in output_dir.iterdir() if p.suffix in {".html", ".png", ".csv", ".md"}),
            "report.json",
            "pieces.tsv",
        ),
        summary=(
            f"{base.size:,} + {len(pieces):,} pieces, {final_size:,} rows; "
            f"gates: {sum(item.passed for item in gates)} of {len(gates)} passed",
            f"tokens relative to the base on held-out text: {shown}",
        ),
    )


def size_curve(
    base: BaseTokenizer, pieces: list[str], texts: Mapping[str, list[str]], points: int = 9
) -> tuple[list[int], dict[str, list[float]]]:
    """Tokens relative to the base when only the first pieces are added.

    Pieces come in merge order, and each is made of earlier ones, so a prefix of them is a vocabulary too.
    """
    import sentencepiece

    sizes = sorted({round(len(pieces) * at / (points - 1)) for at in range(points)})
    sample = {language: lines[:2000] for language, lines in texts.items()}
    tokens: dict[str, list[int]] = {language: [] for language in sample}
    for size in sizes:
        proto = merge_sentencepiece(base, pieces[:size], base.size + size)
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        for language, lines in sample.items():
            tokens[language].append(sum(map(len, processor.encode(lines, out_type=int))))
    return sizes, {language: [value / found[0] for value in found] for language, found in tokens.items()}
