"""From corpus and base to the pieces to add, for both kinds of base."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, Split
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.progress import Progress
from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.merge import neighbour_concatenations, select_reachable
from tsugiki.tokenizer.base.sample import available_bytes, byte_budgets, draw, normalise
from tsugiki.tokenizer.base.scripts import LANGUAGE_LETTERS, ScriptRule, everyday_characters, scripts_of
from tsugiki.tokenizer.base.words import Split as Splitter
from tsugiki.tokenizer.base.words import keep_everything, pretokeniser
from tsugiki.tokenizer.config import ExtendConfig
from tsugiki.tokenizer.learning.bpe_trainer import Learned, LearnedPiece, MergeLearner
from tsugiki.tokenizer.learning.byte_level import (
    ByteLevelEncoder,
    BytePieceJudge,
    build_byte_segments,
    byte_neighbours,
    count_pretokens,
)
from tsugiki.tokenizer.learning.code_sample import CODE_SAMPLE
from tsugiki.tokenizer.learning.segments import LatinGuard, PieceJudge, build_segments, count_runs
from tsugiki.tokenizer.learning.sentencepiece_trainer import PRETOKENISATION_DELIMITER, train_candidates
from tsugiki.tokenizer.learning.word_lists import default_list, describe, load_word_list, word_runs
from tsugiki.tokenizer.measure.efficiency import byte_surface

_MINIMUM_SCRIPT_SHARE = 0.1
_PROTECTED_FREQUENCY = 1e-6
"""Words that are rarer in a protected language are not looked for: a list of them is mostly names."""
_ZERO_WIDTH_SPACE = "\u200b"
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class CorpusText:
    """The corpus with what the stage needs to read from it."""

    index: CorpusIndex
    directory: Path
    seed: int

    def lines(self, language: str, budget_bytes: int, split: Split = "heldout") -> list[str]:
        """Non-empty lines of a language within a byte budget."""
        texts = draw(self.index, self.directory, language, budget_bytes, split, self.seed)
        return [line for text in texts for line in text.split("\n") if line.strip()]

    def protected(self, extend: ExtendConfig) -> dict[str, list[str]]:
        """Held-out lines that must not change, by name."""
        found = {language: self.lines(language, extend.protect_bytes) for language in extend.protect}
        if extend.protect_code:
            found["code"] = [line for line in CODE_SAMPLE.split("\n") if line.strip()]
        return {name: lines for name, lines in found.items() if lines}

    def protected_training(self, extend: ExtendConfig) -> Iterator[str]:
        """Training text of the protected languages, streamed."""
        present = [language for language in extend.protect if language in self.index.languages]
        for language in present:
            budget = extend.protect_bytes // len(present)
            yield from draw(self.index, self.directory, language, budget, "train", self.seed)


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
    if base.kind == "byte_level" and any(name != "none" for name in extend.pretokenise.values()):
        raise ConfigError(
            "a byte-level base cuts text by its own pre-tokeniser; word segmentation cannot be added to it",
            where="tokenizer.extend.pretokenise",
            got=", ".join(f"{language}: {name}" for language, name in extend.pretokenise.items()),
            expected="nothing, or a SentencePiece base",
            fix="leave pretokenise out",
        )
    if base.kind == "byte_level" and extend.phrases:
        raise ConfigError(
            "a byte-level base cuts text at spaces, so no piece can be a phrase",
            where="tokenizer.extend.phrases",
            got=", ".join(extend.phrases),
            fix="leave phrases out",
        )
    if base.kind == "byte_level" and extend.method != "continued":
        raise ConfigError(
            "a byte-level base is extended by continued merges only",
            where="tokenizer.extend.method",
            got=extend.method,
            expected="continued",
        )
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


def script_rules(extend: ExtendConfig, phrases: bool) -> tuple[dict[str, ScriptRule], ScriptRule]:
    """Rules by language, and one for all of them."""
    letters = {language: LANGUAGE_LETTERS.get(language.split("-")[0], "") for language in extend.languages}
    rules = {}
    for language in extend.languages:
        scripts = scripts_of(language, extend.scripts)
        wanted = scripts == ("Latin",) if extend.phrases is None else language in extend.phrases
        rules[language] = ScriptRule(scripts, phrases=phrases and wanted, letters=letters[language])
    every = (script for rule in rules.values() for script in rule.scripts)
    return rules, ScriptRule(every, letters="".join(letters.values()))


def word_lists(
    extend: ExtendConfig, rules: Mapping[str, ScriptRule]
) -> dict[str, tuple[str, dict[str, float]]]:
    """Name and words of the list of each language that has one in its script.

    Raises:
        ConfigError, DataError, EnvironmentError_: see :func:`~tsugiki.tokenizer.learning.word_lists.load_word_list`;
            a list asked for has no word in the script.
    """
    if extend.method == "sentencepiece" or not extend.word_list_share:
        if extend.word_lists and extend.method == "sentencepiece":
            raise ConfigError(
                "word lists go with continued merges only",
                where="tokenizer.extend.word_lists",
                got="method: sentencepiece",
                fix="leave word_lists out, or take method: continued",
            )
        return {}
    found: dict[str, tuple[str, dict[str, float]]] = {}
    for language, rule in rules.items():
        name = extend.word_lists.get(language) or default_list(language)
        words = load_word_list(language, name)
        if any(map(rule.letters, words)):
            found[language] = name, words
        elif words and language in extend.word_lists:
            raise DataError(
                f"the word list has no word of '{language}'",
                where=f"tokenizer.extend.word_lists.{language}",
                got=f"{name}: {', '.join(list(words)[:5])}",
                expected=f"words in {', '.join(rule.scripts)}",
            )
    return found


def _samples(
    extend: ExtendConfig, corpus: CorpusText, rules: dict[str, ScriptRule]
) -> dict[str, Callable[[], Iterator[str]]]:
    """A function per language that streams its training sample; checks its script on the way."""
    available = available_bytes(corpus.index, extend.languages, "train")
    budgets = byte_budgets(extend.languages, available, extend.sample_bytes)

    def stream(language: str) -> Iterator[str]:
        letters = characters = 0
        for text in draw(corpus.index, corpus.directory, language, budgets[language], "train", corpus.seed):
            letters += rules[language].letters(text)
            characters += sum(map(str.isalpha, text))
            yield text
        if letters < _MINIMUM_SCRIPT_SHARE * characters or not characters:
            share = letters / max(characters, 1)
            raise DataError(
                f"the text called '{language}' is in another language",
                where=f"tokenizer.extend.languages.{language}",
                got=f"{share:.0%} of its letters are {', '.join(rules[language].scripts)}",
                expected=f"at least {_MINIMUM_SCRIPT_SHARE:.0%}",
                fix="correct the language of the corpus sources, or their filters",
            )

    return {language: lambda language=language: stream(language) for language in extend.languages}  # type: ignore[misc]


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
        for language, sample in _samples(extend, corpus, rules).items()
    }
    small = {language: _small_words(counter) for language, counter in runs.items()}
    forbidden = _forbidden(extend, base, corpus, every, small)
    guard = latin_guard(extend, corpus, small, every.is_foreign)
    for language, counter in runs.items():
        counter.update(_without_zero_width_spaces(counter))
        letters = sum(len(run) * times for run, times in counter.items())
        if language in words:
            counter.update(_listed(extend, language, rules[language], words[language][1], letters))
        else:
            counter.update(_everyday(extend, language, rules[language], letters))
    segments, surfaces, byte_cost = build_segments(
        base, runs, _importance(extend, corpus), damping=extend.damping, threads=workers
    )
    del runs
    judge = PieceJudge(
        base, list(rules.values()), forbidden, extend.maximum_piece_characters, guard, every.is_foreign
    )
    learner = MergeLearner(
        segments,
        surfaces,
        byte_cost,
        judge,
        extend.quotas,
        extend.minimum_count,
        extend.balance,
        character_factor=extend.character_factor,
    )
    with Progress("learn merges", count, "pieces") as progress:
        learned = learner.learn(count, progress.advance)
    kept = set(select_reachable(base, [item.piece for item in learned.pieces], count))
    return [item for item in learned.pieces if item.piece in kept], learned


def _without_zero_width_spaces(runs: Mapping[str, int]) -> Counter[str]:
    """Runs with zero-width spaces as other people write them, without, counted half.

    Khmer, Lao, Burmese and Thai texts mark words with them or do not; pieces must serve both.
    """
    found: Counter[str] = Counter()
    for run, count in runs.items():
        if _ZERO_WIDTH_SPACE in run:
            found[run.replace(_ZERO_WIDTH_SPACE, "")] += (count + 1) // 2
    return found


def _everyday(extend: ExtendConfig, language: str, rule: ScriptRule, letters: int) -> dict[str, int]:
    """Characters of everyday use, as often as if ``everyday_share`` of the letters were drawn from them."""
    characters = everyday_characters(language, rule.scripts)
    count = round(extend.everyday_share * letters / max(len(characters), 1))
    return dict.fromkeys(characters, count) if count else {}


def _listed(
    extend: ExtendConfig, language: str, rule: ScriptRule, words: Mapping[str, float], letters: int
) -> dict[str, int]:
    """Words of a language's list, as often as makes them ``word_list_share`` of the letters."""
    wanted = extend.word_list_share / (1 - extend.word_list_share) * letters
    return word_runs(words, language, rule, lambda text: normalise(text, extend.normalize), wanted)


def latin_guard(
    extend: ExtendConfig,
    corpus: CorpusText,
    small_words: Mapping[str, Mapping[str, int]],
    is_foreign: Callable[[str], bool],
) -> LatinGuard | None:
    """A :class:`~tsugiki.tokenizer.learning.segments.LatinGuard` for the words of a corpus, if one is wanted.

    Args:
        extend: configuration.
        corpus: gives the protected text.
        small_words: how often each word in small letters occurs in a target language's sample.
        is_foreign: whether a text holds characters of a target language only.
    """
    if not (extend.protect and extend.protect_unseen):
        return None
    protected: set[str] = set()
    for text in _protected_texts(extend, corpus, is_foreign):
        protected.update(_WORD.findall(text))
    common = (
        word
        for counter in small_words.values()
        for word, count in counter.items()
        if count >= extend.minimum_count
    )
    return LatinGuard(protected, common)


def _small_words(runs: Mapping[str, int]) -> Counter[str]:
    """How often each Latin word that is written in small letters occurs."""
    found: Counter[str] = Counter()
    for run, count in runs.items():
        if run.lstrip()[:1].isalpha() and any("LATIN" in unicodedata.name(c, "") for c in run.strip()[:1]):
            for word in run.split():
                if word.islower():
                    found[word] += count
    return found


def _importance(extend: ExtendConfig, corpus: CorpusText) -> dict[str, float]:
    """Weights of the languages: configured weight times amount of text to the power ``size_exponent``."""
    available = available_bytes(corpus.index, extend.languages, "train")
    budgets = byte_budgets(extend.languages, available, extend.sample_bytes)
    return {
        language: weight * float(max(budgets[language], 1)) ** extend.size_exponent
        for language, weight in extend.languages.items()
    }


def _forbidden(
    extend: ExtendConfig,
    base: BaseTokenizer,
    corpus: CorpusText,
    every: ScriptRule,
    small_words: Mapping[str, Mapping[str, int]],
) -> set[str]:
    """Pieces that would change protected text."""
    texts = _protected_texts(extend, corpus, every.is_foreign)
    words = protected_words(extend, small_words)
    return neighbour_concatenations(base.exact_processor(), chain(texts, words), every.is_foreign)


def _protected_texts(
    extend: ExtendConfig, corpus: CorpusText, is_foreign: Callable[[str], bool]
) -> Iterator[str]:
    """Protected text, training and held-out, without what it quotes in a target language.

    A line that holds characters of a target language is meant to change; its words in other than ASCII ("Hà"
    beside "Nội") are left out.
    """
    held_out = (line for lines in corpus.protected(extend).values() for line in lines)
    for text in chain(corpus.protected_training(extend), held_out):
        if not is_foreign(text):
            yield text
            continue
        lines = text.split("\n")
        yield "\n".join(
            " ".join(filter(str.isascii, line.split(" "))) if is_foreign(line) else line for line in lines
        )


def protected_words(extend: ExtendConfig, small_words: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Words that the protected languages use at large: protected text that the corpus need not hold.

    A list of English words holds those of other languages that English texts quote, so a word counts only
    where English has it more often than the target languages, by their lists, or by the sample of a language
    without a list.

    Args:
        extend: configuration.
        small_words: how often each word in small letters occurs in a target language's sample.

    Returns:
        Each word in small letters and with a capital; nothing with ``protect_unseen: false``.
    """
    if not extend.protect_unseen:
        return []
    elsewhere: dict[str, float] = {}
    for language in extend.languages:
        frequencies = load_word_list(language, default_list(language))
        if not frequencies:
            sample = small_words.get(language, {})
            total = max(sum(sample.values()), 1)
            frequencies = {word: n / total for word, n in sample.items() if n >= extend.minimum_count}
        for word, frequency in frequencies.items():
            elsewhere[word] = max(elsewhere.get(word, 0.0), frequency)
    found: dict[str, None] = {}
    for language in extend.protect:
        for word, frequency in load_word_list(language, default_list(language)).items():
            if frequency >= max(_PROTECTED_FREQUENCY, elsewhere.get(word, 0.0)):
                found |= dict.fromkeys((word, word.capitalize()))
    return list(found)


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
        for language, sample in _samples(extend, corpus, rules).items():
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
    forbidden = _forbidden(extend, base, corpus, every, {})
    allowed = [
        piece
        for piece in candidates
        if piece not in forbidden and any(rule.allows(piece) for rule in rules.values())
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
        for language, sample in _samples(extend, corpus, rules).items()
    }
    small = {
        language: _small_words({byte_surface(run).decode(errors="ignore"): n for run, n in counter.items()})
        for language, counter in runs.items()
    }
    words_at_large = (f"{space}{word}" for word in protected_words(extend, small) for space in ("", " "))
    texts = _protected_texts(extend, corpus, every.is_foreign)
    forbidden = byte_neighbours(encoder, chain(texts, words_at_large), every.is_foreign)
    guard = latin_guard(extend, corpus, small, every.is_foreign)
    for language, (_, frequencies) in words.items():
        counter = runs[language]
        letters = sum(len(byte_surface(run).decode(errors="ignore")) * n for run, n in counter.items())
        for run, times in _listed(extend, language, rules[language], frequencies, letters).items():
            for pretoken in encoder.pretokens(run):
                counter[pretoken] += times
    segments, surfaces = build_byte_segments(base, encoder, runs, _importance(extend, corpus), extend.damping)
    judge = BytePieceJudge(
        encoder,
        surfaces,
        list(rules.values()),
        forbidden,
        extend.maximum_piece_characters,
        guard,
        every.is_foreign,
    )
    learner = MergeLearner(
        segments,
        surfaces,
        {},
        judge,
        extend.quotas,
        extend.minimum_count,
        extend.balance,
        explicit=True,
    )
    with Progress("learn merges", count, "pieces") as progress:
        learned = learner.learn(count, progress.advance)
    return learned.pieces, learned
