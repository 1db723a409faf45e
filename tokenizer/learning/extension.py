"""From corpus and base to the pieces to add, for both kinds of base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.progress import Progress
from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.byte_level import ByteLevelEncoder, byte_surface
from tsugiki.tokenizer.base.merge import select_reachable
from tsugiki.tokenizer.base.sample import normalise
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.base.words import Split as Splitter
from tsugiki.tokenizer.base.words import keep_everything, pretokeniser
from tsugiki.tokenizer.config import ExtendConfig
from tsugiki.tokenizer.learning.bpe_trainer import BpeTrainer, Learned, LearnedPiece
from tsugiki.tokenizer.learning.byte_level import build_byte_segments, byte_neighbours, count_pretokens
from tsugiki.tokenizer.learning.candidates import ByteCandidateFilter, CandidateFilter, Limits
from tsugiki.tokenizer.learning.protected import (
    count_small_words,
    forbidden_pieces,
    latin_guard,
    pieces_of_unseen_words,
    protected_texts,
    protected_words,
)
from tsugiki.tokenizer.learning.segments import build_segments, count_runs
from tsugiki.tokenizer.learning.sentencepiece_trainer import PRETOKENISATION_DELIMITER, train_candidates
from tsugiki.tokenizer.learning.text import (
    CorpusText,
    everyday_runs,
    importance,
    listed_runs,
    samples,
    script_rules,
    without_zero_width_spaces,
    word_lists,
)
from tsugiki.tokenizer.learning.word_lists import describe


@dataclass
class Extension:
    """What is added to a base.

    Attributes:
        pieces: in merge order.
        facts: how they were learned, for the report.
        is_foreign: whether a text holds characters of a target script other than Latin.
    """

    pieces: list[LearnedPiece]
    facts: dict[str, Any]
    is_foreign: Callable[[str], bool]

    @property
    def surfaces(self) -> list[str]:
        """Surfaces of the pieces."""
        return [item.piece for item in self.pieces]


def learn_extension(
    extend: ExtendConfig, base: BaseTokenizer, corpus: CorpusText, count: int, workers: int
) -> Extension:
    """Learn up to ``count`` pieces on the training text of the corpus.

    Raises:
        DataError: no usable text, or text that is not in a language's script.
        ConfigError: a method that the base does not allow.
    """
    rules, every = script_rules(extend, phrases=base.kind == "sentencepiece")
    if base.kind == "byte_level":
        _check_byte_level_request(extend)
    splitters = {
        language: keep_everything(pretokeniser(name))
        for language, name in extend.pretokenise.items()
        if name != "none"
    }
    words = word_lists(extend, rules)
    if extend.method == "sentencepiece":
        pieces, learned = (
            _by_sentencepiece(extend, base, corpus, rules, every, splitters, count, workers),
            None,
        )
    elif base.kind == "sentencepiece":
        pieces, learned = _by_merges(extend, base, corpus, rules, every, words, splitters, count, workers)
    else:
        pieces, learned = _by_byte_merges(extend, base, corpus, rules, every, words, count)
    if not pieces:
        raise DataError(
            "no piece is left to add",
            where="tokenizer.extend",
            got=f"no repeated text in the scripts of {', '.join(extend.languages)}",
            fix="check that the corpus holds text in those languages; raise sample_bytes",
        )
    facts: dict[str, Any] = {}
    if learned is not None:
        lists = {
            language: f"{describe(name)}, {len(found):,} words" for language, (name, found) in words.items()
        }
        facts = {"refused": learned.rejected, "exhausted": learned.exhausted, "word_lists": lists}
    return Extension(pieces, facts, every.is_foreign)


def _check_byte_level_request(extend: ExtendConfig) -> None:
    """Refuse what a byte-level base cannot do."""
    if any(name != "none" for name in extend.pretokenise.values()):
        raise ConfigError(
            "a byte-level base cuts text by its own pre-tokeniser; word segmentation cannot be added to it",
            where="tokenizer.extend.pretokenise",
            got=", ".join(f"{language}: {name}" for language, name in extend.pretokenise.items()),
            expected="nothing, or a SentencePiece base",
            fix="leave pretokenise out",
        )
    if extend.phrases:
        raise ConfigError(
            "a byte-level base cuts text at spaces, so no piece can be a phrase",
            where="tokenizer.extend.phrases",
            got=", ".join(extend.phrases),
            fix="leave phrases out",
        )
    if extend.method != "continued":
        raise ConfigError(
            "a byte-level base is extended by continued merges only",
            where="tokenizer.extend.method",
            got=extend.method,
            expected="continued",
        )


def _by_merges(
    extend: ExtendConfig,
    base: BaseTokenizer,
    corpus: CorpusText,
    rules: dict[str, ScriptRule],
    every: ScriptRule,
    words: Mapping[str, tuple[str, Mapping[str, float]]],
    splitters: dict[str, Splitter],
    count: int,
    workers: int,
) -> tuple[list[LearnedPiece], Learned]:
    runs = {
        language: count_runs(
            sample(), rules[language], lambda text: normalise(text, extend.normalize), splitters.get(language)
        )
        for language, sample in samples(extend, corpus, rules).items()
    }
    small = {language: count_small_words(counter) for language, counter in runs.items()}
    forbidden = forbidden_pieces(extend, base, corpus, every, small)
    guard = latin_guard(extend, corpus, small, every.is_foreign)
    for language, counter in runs.items():
        counter.update(without_zero_width_spaces(counter))
        letters = sum(len(run) * times for run, times in counter.items())
        if language in words:
            counter.update(listed_runs(extend, language, rules[language], words[language][1], letters))
        else:
            counter.update(everyday_runs(extend, language, rules[language], letters))
    segments, surfaces, byte_cost = build_segments(
        base, runs, importance(extend, corpus), damping=extend.damping, threads=workers
    )
    del runs
    candidates = CandidateFilter(
        base, list(rules.values()), forbidden, Limits.of(extend), guard, every.is_foreign
    )
    trainer = BpeTrainer(
        segments,
        surfaces,
        byte_cost,
        candidates,
        extend.quotas,
        extend.minimum_count,
        extend.balance,
        character_factor=extend.character_factor,
    )
    with Progress("learn merges", count, "pieces") as progress:
        learned = trainer.train(count, progress.advance)
    kept = set(select_reachable(base, [item.piece for item in learned.pieces], count))
    return [item for item in learned.pieces if item.piece in kept], learned


def _by_sentencepiece(
    extend: ExtendConfig,
    base: BaseTokenizer,
    corpus: CorpusText,
    rules: dict[str, ScriptRule],
    every: ScriptRule,
    splitters: dict[str, Splitter],
    count: int,
    workers: int,
) -> list[LearnedPiece]:
    def lines() -> Iterator[str]:
        for language, sample in samples(extend, corpus, rules).items():
            split = splitters.get(language)
            for text in sample():
                for line in normalise(text, extend.normalize).split("\n"):
                    yield line if split is None else PRETOKENISATION_DELIMITER.join(split(line))

    candidates = train_candidates(
        lines(),
        int(count * 1.5) + 4000,
        {"split_digits": base.proto.trainer_spec.split_digits},
        threads=workers,
        maximum_piece_characters=extend.maximum_piece_characters,
    )
    forbidden = forbidden_pieces(extend, base, corpus, every, {})
    allowed = [
        piece
        for piece in candidates
        if piece not in forbidden
        and any(rule.allows(piece) for rule in rules.values())
        and not Limits.of(extend).exceeded(piece.replace(SPACE, " "))
    ]
    return [LearnedPiece(piece, (), "", 0.0) for piece in select_reachable(base, allowed, count)]


def _by_byte_merges(
    extend: ExtendConfig,
    base: BaseTokenizer,
    corpus: CorpusText,
    rules: dict[str, ScriptRule],
    every: ScriptRule,
    words: Mapping[str, tuple[str, Mapping[str, float]]],
    count: int,
) -> tuple[list[LearnedPiece], Learned]:
    assert base.document is not None
    encoder = ByteLevelEncoder(base.document)
    runs: dict[str, Counter[str]] = {
        language: count_pretokens(
            sample(), encoder, rules[language], lambda text: normalise(text, extend.normalize)
        )
        for language, sample in samples(extend, corpus, rules).items()
    }
    small = {
        language: count_small_words(
            {byte_surface(run).decode(errors="ignore"): n for run, n in counter.items()}
        )
        for language, counter in runs.items()
    }
    words_at_large = (f"{space}{word}" for word in protected_words(extend, small) for space in ("", " "))
    texts = protected_texts(extend, corpus, every.is_foreign)
    forbidden = byte_neighbours(encoder, chain(texts, words_at_large), every.is_foreign)
    forbidden |= pieces_of_unseen_words(extend, every, small, encoder.text_surfaces)
    guard = latin_guard(extend, corpus, small, every.is_foreign)
    for language, (_, frequencies) in words.items():
        counter = runs[language]
        letters = sum(len(byte_surface(run).decode(errors="ignore")) * n for run, n in counter.items())
        for run, times in listed_runs(extend, language, rules[language], frequencies, letters).items():
            for pretoken in encoder.pretokens(run):
                counter[pretoken] += times
    segments, surfaces = build_byte_segments(base, encoder, runs, importance(extend, corpus), extend.damping)
    candidates = ByteCandidateFilter(
        encoder,
        surfaces,
        list(rules.values()),
        forbidden,
        Limits.of(extend),
        guard,
        every.is_foreign,
    )
    trainer = BpeTrainer(
        segments,
        surfaces,
        {},
        candidates,
        extend.quotas,
        extend.minimum_count,
        extend.balance,
        explicit=True,
    )
    with Progress("learn merges", count, "pieces") as progress:
        learned = trainer.train(count, progress.advance)
    return learned.pieces, learned
