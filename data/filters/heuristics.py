"""Rules datatrove lacks: script shares, Japanese letters, sentences, diversity, word lists."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np
import regex
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.stats import DropWriter, Ledger
from tsugiki.data.filters.profiles import (
    BannedWordSection,
    CharacterSection,
    CleaningSection,
    DiversitySection,
    JapaneseSection,
    LengthSection,
    SentenceSection,
    StopWordSection,
)

_LETTER = regex.compile(r"\p{L}")
_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]+")
_DIGIT = regex.compile(r"\p{Nd}+")
_SYMBOL = regex.compile(r"[^\p{L}\p{M}\p{Nd}\s]+")
_SENTENCE = re.compile(r"[^。．！？!?\n]+[。．！？!?]?|[。．！？!?]")


def _characters(pattern: regex.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


class LengthFilter(BaseFilter):
    """Length in characters and letters."""

    name = "length"

    def __init__(self, section: LengthSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the length is within the limits."""
        section, text = self.section, doc.text
        if section.minimum_characters is not None and len(text) < section.minimum_characters:
            return False, "too_short"
        if section.maximum_characters is not None and len(text) > section.maximum_characters:
            return False, "too_long"
        # The beginning decides for nearly every document.
        beginning = text[: 4 * section.minimum_letters + 200]
        if len(_LETTER.findall(beginning)) < section.minimum_letters and (
            len(beginning) == len(text) or len(_LETTER.findall(text)) < section.minimum_letters
        ):
            return False, "few_letters"
        return True


@cache
def _script_pattern(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    classes = "".join(f"\\p{{{script}}}" for script in scripts)
    # The long vowel sign and the iteration mark belong to no single script.
    common = "ー々" if "Han" in scripts else ""
    return regex.compile(f"[{classes}{common}]+")


class CharacterFilter(BaseFilter):
    """Shares of scripts, digits and symbols."""

    name = "characters"

    def __init__(self, section: CharacterSection, scripts: list[str], writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section
        self.scripts = tuple(scripts)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the shares are within the limits."""
        section, text = self.section, doc.text
        if section.minimum_script_share is not None or section.minimum_script_letters is not None:
            letters = _characters(_LETTER_OR_MARK, text)
            own = _characters(_script_pattern(self.scripts), text)
            self.exclusion_writer.observe("script_share", own / max(1, letters))
            if own < (section.minimum_script_letters or 0):
                return False, "few_script_letters"
            if own < (section.minimum_script_share or 0) * letters or not letters:
                return False, "other_script"
        if section.maximum_digit_share is None and section.maximum_symbol_share is None:
            return True
        visible = sum(map(len, text.split())) or 1
        for name, pattern, limit in (
            ("digit", _DIGIT, section.maximum_digit_share),
            ("symbol", _SYMBOL, section.maximum_symbol_share),
        ):
            if limit is not None:
                share = _characters(pattern, text) / visible
                self.exclusion_writer.observe(f"{name}_share", share)
                if share > limit:
                    return False, f"{name}s"
        return True


class JapaneseFilter(BaseFilter):
    """Japanese letters as the Swallow corpus counts them.

    Hiragana U+3041-3096, katakana U+30A1-30FA, kanji, ``、，`` and ``。．！？``; shares are of all
    characters of the text.
    """

    name = "japanese"

    def __init__(self, section: JapaneseSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether counts and shares are within the limits."""
        section = self.section
        codes = np.frombuffer(doc.text.encode("utf-32-le"), "<u4")
        hiragana = int(np.count_nonzero((codes >= 0x3041) & (codes <= 0x3096)))
        katakana = int(np.count_nonzero((codes >= 0x30A1) & (codes <= 0x30FA)))
        kanji = int(
            np.count_nonzero(
                ((codes >= 0x3400) & (codes <= 0x9FFF))
                | ((codes >= 0xF900) & (codes <= 0xFAFF))
                | ((codes >= 0x20000) & (codes <= 0x3FFFF))
                | np.isin(codes, (0x3005, 0x3007, 0x303B))
            )
        )
        marks = int(np.count_nonzero(np.isin(codes, [ord(sign) for sign in "、，。．！？"])))
        japanese = hiragana + katakana + kanji + marks
        self.exclusion_writer.observe("japanese_share", japanese / max(1, len(codes)))
        self.exclusion_writer.observe("hiragana_share", hiragana / max(1, japanese))
        if japanese < (section.minimum_letters or 0):
            return False, "few_letters"
        if japanese < (section.minimum_share or 0) * len(codes):
            return False, "little_japanese"
        if hiragana < (section.minimum_hiragana or 0) * japanese:
            return False, "little_hiragana"
        if section.maximum_katakana is not None and katakana > section.maximum_katakana * japanese:
            return False, "much_katakana"
        return True


def _repeated(parts: list[str]) -> tuple[float, float]:
    """Share of parts that repeat an earlier one, and share of characters in them."""
    if not parts:
        return 0.0, 0.0
    seen = Counter(parts)
    total = sum(map(len, parts))
    again = len(parts) - len(seen)
    characters = sum(len(part) * (count - 1) for part, count in seen.items())
    return again / len(parts), characters / total if total else 0.0


class SentenceFilter(BaseFilter):
    """Sentences end with ``。．！？!?`` or a newline; paragraphs are the lines that are not blank."""

    name = "sentences"

    def __init__(self, section: SentenceSection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether repetition and lengths are within the limits."""
        section = self.section
        paragraphs = [line for line in doc.text.split("\n") if line.strip()]
        sentences = [part for part in _SENTENCE.findall(doc.text) if part.strip()]
        for name, parts, most, most_characters in (
            ("paragraph", paragraphs, section.duplicate_paragraphs, section.duplicate_paragraph_characters),
            ("sentence", sentences, section.duplicate_sentences, section.duplicate_sentence_characters),
        ):
            if most is None and most_characters is None:
                continue
            share, characters = _repeated(parts)
            if most is not None and share > most:
                return False, f"duplicate_{name}s"
            if most_characters is not None and characters > most_characters:
                return False, f"duplicate_{name}_characters"
        if not sentences:
            return False, "none"
        lengths = [len(sentence) for sentence in sentences]
        mean = sum(lengths) / len(lengths)
        self.exclusion_writer.observe("sentence_characters", mean, 10, 200)
        if section.minimum_mean_characters is not None and mean < section.minimum_mean_characters:
            return False, "short"
        if section.maximum_mean_characters is not None and mean > section.maximum_mean_characters:
            return False, "long"
        if section.maximum_characters is not None and max(lengths) > section.maximum_characters:
            return False, "one_too_long"
        if section.maximum_ellipsis_share is not None:
            ended = sum(sentence.rstrip().endswith(("…", "・", "...")) for sentence in sentences)
            if ended / len(sentences) > section.maximum_ellipsis_share:
                return False, "ellipsis"
        return True


class DiversityFilter(BaseFilter):
    """Different characters, entropy and compressibility."""

    name = "diversity"

    def __init__(self, section: DiversitySection, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the text is neither too monotonous nor noise."""
        section, text = self.section, doc.text
        if section.minimum_unique_characters is not None:
            beginning = text[: section.unique_up_to_characters]
            if len(set(beginning)) / len(beginning) < section.minimum_unique_characters:
                return False, "few_characters"
        if section.minimum_entropy_bits is not None:
            entropy = entropy_bits(text)
            self.exclusion_writer.observe("entropy_bits", entropy, 0.5, 12)
            if entropy < section.minimum_entropy_bits:
                return False, "entropy"
        if section.minimum_compression is not None or section.maximum_compression is not None:
            data = text.encode()
            ratio = len(zlib.compress(data, 9)) / len(data)
            self.exclusion_writer.observe("compression", ratio)
            if ratio < (section.minimum_compression or 0):
                return False, "compresses_well"
            if section.maximum_compression is not None and ratio > section.maximum_compression:
                return False, "compresses_badly"
        return True


def entropy_bits(text: str) -> float:
    """Entropy of the characters of a text in bits per character."""
    counts = np.fromiter(Counter(text).values(), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@cache
def _word_pattern(words: tuple[str, ...], bounded: bool) -> regex.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    alternatives = "|".join(map(regex.escape, longest_first))
    return regex.compile(rf"\b(?:{alternatives})\b" if bounded else alternatives, regex.I)


class StopWordFilter(BaseFilter):
    """Stop words, by number and by share.

    Args:
        section: the words and limits.
        bounded: words stand between spaces or punctuation.
        writer: receives what is dropped.
    """

    name = "stop_words"

    def __init__(self, section: StopWordSection, bounded: bool, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section
        self.bounded = bounded

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether there are enough."""
        section = self.section
        pattern = _word_pattern(tuple(section.words), self.bounded)
        if section.minimum_share is not None:
            found = pattern.findall(doc.text)
            share = sum(map(len, found)) / max(1, _characters(_LETTER_OR_MARK, doc.text))
            self.exclusion_writer.observe("stop_word_share", share)
            if share < section.minimum_share:
                return False, "few"
            different = {word.lower() for word in found}
        else:
            different = set()
            for match in pattern.finditer(doc.text):
                different.add(match[0].lower())
                if len(different) >= (section.minimum_different or 0):
                    break
        if len(different) < (section.minimum_different or 0):
            return False, "few_different"
        return True


class BannedWordFilter(BaseFilter):
    """Share of characters in banned words."""

    name = "banned_words"

    def __init__(self, section: BannedWordSection, bounded: bool, writer: DropWriter) -> None:
        super().__init__(writer)
        self.section = section
        self.bounded = bounded

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether there are few enough."""
        found = _characters(_word_pattern(tuple(self.section.words), self.bounded), doc.text)
        if not found:
            return True
        share = found / max(1, _characters(_LETTER_OR_MARK, doc.text))
        return True if share <= self.section.maximum_share else (False, "share")


class Cleaner(PipelineStep):
    """Footers and punctuation, before the filters."""

    name = "cleaning"
    type = "formatter"

    def __init__(self, section: CleaningSection, ledger: Ledger) -> None:
        super().__init__()
        self.section = section
        self.ledger = ledger

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Clean each document; one that is all footer is dropped."""
        for document in data:
            text = self.cleaned(document.text)
            if len(text) != len(document.text):
                self.ledger.count("footers_trimmed")
            if not text:
                self.ledger.drop("cleaning.only_footer", document)
                continue
            document.text = text
            yield document

    def cleaned(self, text: str) -> str:
        """Text without its footer and with Japanese punctuation, as the section says."""
        section = self.section
        if section.footer_phrases:
            lines = text.split("\n")
            for place in range(max(0, len(lines) - section.footer_lines), len(lines)):
                if any(phrase in lines[place] for phrase in section.footer_phrases):
                    text = "\n".join(lines[:place]).rstrip()
                    break
        if section.punctuation_by_majority:
            if text.count("，") > text.count("、"):
                text = text.replace("，", "、")
            if text.count("．") > text.count("。"):
                text = text.replace("．", "。")
        return text
