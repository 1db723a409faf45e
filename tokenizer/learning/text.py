"""The text that pieces are learned on: samples of the corpus, and what is counted in beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, Split
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.tokenizer.base.code_sample import code_lines
from tsugiki.tokenizer.base.sample import available_bytes, byte_budgets, draw, normalise
from tsugiki.tokenizer.base.scripts import LANGUAGE_LETTERS, ScriptRule, everyday_characters, scripts_of
from tsugiki.tokenizer.config import ExtendConfig
from tsugiki.tokenizer.learning.word_lists import default_list, load_word_list, word_runs

_MINIMUM_SCRIPT_SHARE = 0.1
_ZERO_WIDTH_SPACE = "\u200b"


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
            found["code"] = code_lines()
        return {name: lines for name, lines in found.items() if lines}

    def protected_training(self, extend: ExtendConfig) -> Iterator[str]:
        """Training text of the protected languages, streamed."""
        present = [language for language in extend.protect if language in self.index.languages]
        for language in present:
            budget = extend.protect_bytes // len(present)
            yield from draw(self.index, self.directory, language, budget, "train", self.seed)


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


def samples(
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


def importance(extend: ExtendConfig, corpus: CorpusText) -> dict[str, float]:
    """Weights of the languages: configured weight times amount of text to the power ``size_exponent``."""
    available = available_bytes(corpus.index, extend.languages, "train")
    budgets = byte_budgets(extend.languages, available, extend.sample_bytes)
    return {
        language: weight * float(max(budgets[language], 1)) ** extend.size_exponent
        for language, weight in extend.languages.items()
    }


def without_zero_width_spaces(runs: Mapping[str, int]) -> Counter[str]:
    """Runs with zero-width spaces as other people write them, without, counted half.

    Khmer, Lao, Burmese and Thai texts mark words with them or do not; pieces must serve both.
    """
    found: Counter[str] = Counter()
    for run, count in runs.items():
        if _ZERO_WIDTH_SPACE in run:
            found[run.replace(_ZERO_WIDTH_SPACE, "")] += (count + 1) // 2
    return found


def everyday_runs(extend: ExtendConfig, language: str, rule: ScriptRule, letters: int) -> dict[str, int]:
    """Characters of everyday use, as often as if ``everyday_share`` of the letters were drawn from them."""
    characters = everyday_characters(language, rule.scripts)
    count = round(extend.everyday_share * letters / max(len(characters), 1))
    return dict.fromkeys(characters, count) if count else {}


def listed_runs(
    extend: ExtendConfig, language: str, rule: ScriptRule, words: Mapping[str, float], letters: int
) -> dict[str, int]:
    """Words of a language's list, as often as makes them ``word_list_share`` of the letters."""
    wanted = extend.word_list_share / (1 - extend.word_list_share) * letters
    return word_runs(words, language, rule, lambda text: normalise(text, extend.normalize), wanted)
