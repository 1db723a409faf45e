"""How often the words of a language are used at large: general knowledge beside the text at hand.

A sample of manuals or of one encyclopedia gives pieces for manuals; the next text is news or a novel. Word
frequencies of the whole language, counted in as a part of the sample, carry over to it (docs/tokenizer.md has
figures). Lists by language come from ``wordfreq`` (Speer 2022, https://github.com/rspeer/wordfreq: web,
subtitles, news, books and encyclopedias; the data are part of the package), from ``pythainlp`` (Thai National
Corpus), or from a file.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError, DataError, EnvironmentError_
from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.base.words import UNSPACED

NAMED = ("wordfreq", "pythainlp", "none")
_FILE = "UTF-8 text, a word, a tab and its count on each line"
_FURTHEST_CODE = 10
"""Distance of language codes up to which a list is that of the language (tl is fil, pt-BR is pt)."""
_MORPHEMES = frozenset({"ko"})
"""Languages whose words are cut into morphemes in wordfreq's list, so not as text has them between spaces."""

Words = Mapping[str, float]


def is_file(setting: str) -> bool:
    """Whether a value of ``word_lists`` is a path."""
    return setting not in NAMED


def word_list_files(word_lists: Mapping[str, str]) -> list[Path]:
    """Files among the lists of a configuration that are there."""
    paths = (expand_path(setting) for setting in word_lists.values() if is_file(setting))
    return [path for path in paths if path.is_file()]


def describe(setting: str) -> str:
    """A list's source for the report: a package with its version, or the path."""
    return setting if is_file(setting) else f"{setting} {importlib.metadata.version(setting)}"


def default_list(language: str) -> str:
    """``wordfreq`` where it has the words of a language as text has them, else ``none``."""
    has_words = _wordfreq_code(language) is not None and language.split("-")[0] not in _MORPHEMES
    return "wordfreq" if has_words else "none"


def load_word_list(language: str, setting: str) -> dict[str, float]:
    """Words and how often they occur, on any scale.

    Args:
        language: ISO 639 code.
        setting: ``wordfreq``, ``pythainlp``, ``none`` or a path.

    Raises:
        ConfigError: the named source has no list of the language, or there is no such file.
        DataError: the file is not a word list.
        EnvironmentError_: the package is not installed.
    """
    where = f"tokenizer.extend.word_lists.{language}"
    if setting == "none":
        return {}
    if setting == "wordfreq":
        code = _wordfreq_code(language)
        if code is None:
            raise ConfigError(
                f"wordfreq has no word list for '{language}'",
                where=where,
                expected=f"one of {', '.join(sorted(_wordfreq_languages()))}",
                fix=f"none, or the path of a file: {_FILE}",
            )
        import wordfreq

        return dict(wordfreq.get_frequency_dict(code))
    if setting == "pythainlp":
        return _thai(language, where)
    return read_word_list(expand_path(setting), where)


def read_word_list(path: Path, where: str) -> dict[str, float]:
    """Read ``word<TAB>count`` lines; a line without a count counts once, and words met again add up.

    Raises:
        ConfigError: no such file.
        DataError: naming file and line of what is no word list.
    """
    if not path.is_file():
        raise ConfigError(
            "no such word list",
            where=where,
            got=path,
            expected=f"{', '.join(NAMED)}, or the path of a file: {_FILE}",
        )
    words: defaultdict[str, float] = defaultdict(float)
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            word, _, count = line.decode("utf-8-sig" if number == 1 else "utf-8").strip().partition("\t")
            frequency = float(count) if count else 1.0
        except ValueError as error:
            raise DataError(
                "not a word list",
                where=f"{path}:{number}",
                got=error,
                expected=_FILE,
            ) from error
        if not 0 < frequency < float("inf"):
            raise DataError("a count must be above 0", where=f"{path}:{number}", got=count)
        if word:
            words[word] += frequency
    if not words:
        raise DataError(
            "the word list is empty", where=path, expected="a word, a tab and its count on each line"
        )
    return dict(words)


def _thai(language: str, where: str) -> dict[str, float]:
    if language.split("-")[0] != "th":
        raise ConfigError("pythainlp has a word list for 'th' only", where=where, got=language)
    if importlib.util.find_spec("pythainlp") is None:
        raise EnvironmentError_(
            "the word list of pythainlp needs pythainlp",
            where=where,
            got="not installed",
            fix="pip install 'tsugiki[words]', or leave the language out of word_lists",
        )
    corpus: Any = importlib.import_module("pythainlp.corpus.tnc")
    return {word: float(count) for word, count in corpus.word_freqs() if count > 0}


@cache
def _wordfreq_languages() -> tuple[str, ...]:
    import wordfreq

    return tuple(wordfreq.available_languages("best"))


@cache
def _wordfreq_code(language: str) -> str | None:
    """wordfreq's code of a language; None when it has none (its Chinese is in simplified characters)."""
    import langcodes

    code, distance = langcodes.closest_match(
        language, list(_wordfreq_languages()), max_distance=_FURTHEST_CODE
    )
    return None if distance > _FURTHEST_CODE else code


def word_runs(
    words: Words, language: str, rule: ScriptRule, normalise: Callable[[str], str], letters: float
) -> dict[str, int]:
    """Words as runs of text (see :func:`~tsugiki.tokenizer.learning.segments.count_runs`) that make up so many letters.

    Words that are not of the language's script throughout are left out; where words are written apart, each
    has a space before it.

    Args:
        words: frequencies.
        language: ISO 639 code.
        rule: characters of the language.
        normalise: Unicode normalisation of training text.
        letters: characters of all runs returned, less what is rounded off.
    """
    space = "" if language.split("-")[0] in UNSPACED else " "
    kept: defaultdict[str, float] = defaultdict(float)
    for word, frequency in words.items():
        run = space + normalise(word)
        if rule.allows(run.replace(" ", SPACE)):
            kept[run] += frequency
    total = sum(len(run) * frequency for run, frequency in kept.items())
    counts = ((run, round(frequency * letters / total)) for run, frequency in kept.items())
    return {run: count for run, count in counts if count}
