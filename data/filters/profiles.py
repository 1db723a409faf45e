"""Quality profiles: one YAML per language, the rules it names and where their thresholds come from.

Adding a language is adding a file: see ``docs/corpus.md``. A section that is absent or null is not
run. Every section carries ``source``: one text for all its thresholds, or one per threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from tsugiki.data.config import Language
from tsugiki.experiment.config import StrictModel, expand_path, load_config
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.shipped import shipped

if TYPE_CHECKING:
    from tsugiki.data.common.segmentation import Segmentation
else:
    from typing import Literal

    Segmentation = Literal["words", "script_runs", "characters", "syllables"]

GOPHER_TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
GOPHER_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Table A1 of Gopher (arXiv 2112.11446)."""

Share = Annotated[float, Field(ge=0, le=1)]


class RuleSection(StrictModel):
    """Common to all sections."""

    source: str | dict[str, str]
    """Where the thresholds come from: one text, or one per threshold (`default` for the others)."""

    @model_validator(mode="after")
    def _every_threshold_has_a_source(self) -> Self:
        if isinstance(self.source, dict):
            given = self.model_fields_set - {"source"}
            unknown = set(self.source) - set(type(self).model_fields) - {"default"}
            if unknown:
                raise ValueError(f"sources of existing thresholds, not of {', '.join(sorted(unknown))}")
            missing = given - set(self.source) if "default" not in self.source else set()
            if missing:
                raise ValueError(f"a source for {', '.join(sorted(missing))}, or `default`")
        return self


class ConfusableSection(StrictModel):
    """A language that identification takes for this one, told apart by words only one of them has."""

    language: Language
    """The other language."""
    own_words: list[str] = Field(min_length=1)
    """Words of this language that the other one writes or says differently."""
    other_words: list[str] = Field(min_length=1)
    """Words of the other language that this one does not use."""


class LanguageSection(RuleSection):
    """Language identification."""

    confusable: ConfusableSection | None = None
    """Where the model hesitates between two languages, words decide."""

    accept: list[Language] = Field(default_factory=list)
    """Labels that count as the language besides itself, e.g. `zh-Hant` for `zh`."""
    minimum_share: Share = 0.5
    """Least share of the text in the language, by the packaged CLD2 model."""
    minimum_probability: Share = 0.65
    """Least probability of the language, by a fastText model given by path."""


class LengthSection(RuleSection):
    """Length of the document."""

    minimum_characters: int | None = None
    """Least characters."""
    maximum_characters: int | None = None
    """Most characters."""
    minimum_letters: int = Field(default=1, ge=1)
    """Least letters of any script."""


class RepetitionSection(RuleSection):
    """datatrove's GopherRepetitionFilter; n-grams are of words."""

    duplicate_line_share: Share | None = 0.30
    """Most duplicate lines."""
    duplicate_paragraph_share: Share | None = 0.30
    """Most duplicate paragraphs."""
    duplicate_line_characters: Share | None = 0.20
    """Most characters in duplicate lines."""
    duplicate_paragraph_characters: Share | None = 0.20
    """Most characters in duplicate paragraphs."""
    top_ngrams: dict[int, Share] = Field(default_factory=lambda: dict(GOPHER_TOP_NGRAMS))
    """Most characters in the most frequent n-gram, by n."""
    duplicate_ngrams: dict[int, Share] = Field(default_factory=lambda: dict(GOPHER_DUPLICATE_NGRAMS))
    """Most characters in repeated n-grams, by n."""


class GopherSection(RuleSection):
    """datatrove's GopherQualityFilter."""

    minimum_words: int | None = 50
    """Least words that are not symbols."""
    maximum_words: int | None = 100_000
    """Most words."""
    minimum_word_length: float | None = 3
    """Least mean word length."""
    maximum_word_length: float | None = 10
    """Most mean word length."""
    maximum_symbol_share: Share | None = 0.1
    """Most `#` or ellipses per word."""
    maximum_bullet_lines: Share | None = 0.9
    """Most lines that begin with a bullet."""
    maximum_ellipsis_lines: Share | None = 0.3
    """Most lines that end in an ellipsis."""
    minimum_alphabetic_words: Share | None = 0.8
    """Least words with a letter."""


class FinewebSection(RuleSection):
    """datatrove's FineWebQualityFilter."""

    minimum_punctuated_lines: Share = 0.12
    """Least lines that end in punctuation."""
    no_punctuation_is_fine: bool = False
    """Do not apply it to documents without any end punctuation (Thai, Lao)."""
    maximum_short_lines: Share = 0.67
    """Most short lines."""
    short_line_characters: int = 30
    """What a short line is."""
    maximum_duplicate_characters: Share = 0.01
    """Most characters in repeated lines."""
    maximum_newlines_per_word: float = 0.3
    """Most newlines per word."""


class CharacterNgramSection(RuleSection):
    """Repetition by character n-grams, as the Swallow corpus defines it."""

    top: dict[int, Share] = Field(default_factory=lambda: dict(GOPHER_TOP_NGRAMS))
    """Most occurrences of the most frequent n-gram among all occurrences, by n."""
    duplicate: dict[int, Share] = Field(default_factory=lambda: dict(GOPHER_DUPLICATE_NGRAMS))
    """Most different n-grams that occur more than once, by n."""


class SentenceSection(RuleSection):
    """Sentences and paragraphs, as the Swallow corpus defines them."""

    duplicate_paragraphs: Share | None = None
    """Most lines that repeat an earlier one, and ..."""
    duplicate_paragraph_characters: Share | None = None
    """... most characters in them."""
    duplicate_sentences: Share | None = None
    """Most sentences that repeat an earlier one, and ..."""
    duplicate_sentence_characters: Share | None = None
    """... most characters in them."""
    minimum_mean_characters: float | None = None
    """Least mean length of a sentence."""
    maximum_mean_characters: float | None = None
    """Most mean length of a sentence."""
    maximum_characters: int | None = None
    """Longest sentence."""
    maximum_ellipsis_share: Share | None = None
    """Most sentences that end in an ellipsis or a middle dot."""


class JapaneseSection(RuleSection):
    """Japanese letters (kana, kanji and punctuation), as the Swallow corpus counts them."""

    minimum_letters: int | None = None
    """Least Japanese letters."""
    minimum_share: Share | None = None
    """Least Japanese letters among all characters."""
    minimum_hiragana: Share | None = None
    """Least hiragana among Japanese letters."""
    maximum_katakana: Share | None = None
    """Most katakana among Japanese letters."""


class DiversitySection(RuleSection):
    """How much a document says for its length."""

    minimum_unique_characters: Share | None = None
    """Least different characters among all; falls with length, so only for short texts."""
    unique_up_to_characters: int = 1000
    """The share of different characters is taken over at most this many."""
    minimum_entropy_bits: float | None = None
    """Least entropy of the characters."""
    minimum_compression: Share | None = None
    """Least zlib-9 size divided by size in UTF-8."""
    maximum_compression: float | None = None
    """Most zlib-9 size divided by size in UTF-8."""


class StopWordSection(RuleSection):
    """Words any running text of the language has."""

    words: list[str]
    """The words; in languages without spaces they count wherever they occur."""
    minimum_different: int | None = None
    """Least different ones in a document."""
    minimum_share: Share | None = None
    """Least characters in them among letters and marks."""


class BannedWordSection(RuleSection):
    """Words of pages nobody wants."""

    words: list[str] = Field(default_factory=list)
    """The words, found as they are written, in any case."""
    files: list[str] = Field(default_factory=list)
    """Further lists in the profile's folder, a word a line, e.g. those of LDNOOBW that C4 used; lines
    that begin with `#` are left out."""
    maximum_share: Share = 0.05
    """Most characters in them among letters and marks."""


class CleaningSection(RuleSection):
    """Changes of the text before the filters."""

    punctuation_by_majority: bool = False
    """Japanese: where `，．` are more than `、。`, write all of them as `、。`."""
    footer_lines: int = 10
    """How many of the last lines may be a footer."""
    footer_phrases: list[str] = Field(default_factory=list)
    """A line among the last ones with such a phrase ends the document, itself included."""


class CharacterSection(RuleSection):
    """Shares of characters."""

    minimum_script_share: Share | None = None
    """Least share of the letters in the language's own scripts."""
    minimum_script_letters: int | None = None
    """Least letters in the language's own scripts."""
    maximum_digit_share: Share | None = None
    """Most digits among the characters that are not spaces."""
    maximum_symbol_share: Share | None = None
    """Most characters that are neither letters, marks, digits nor spaces."""


class Profile(StrictModel):
    """A quality profile."""

    language: Language
    """Language the profile is for."""
    scripts: list[str]
    """Scripts the language is written in, as `regex` names them (`Han`, `Hiragana`, `Latin`)."""
    segmentation: Segmentation = "words"
    """How text is cut for the filters: see `data/common/segmentation.py`."""
    units_per_word: float = Field(default=1.0, gt=0)
    """Units of the segmentation in a word. Thresholds are written for words, as published, and
    scaled by this: n of n-grams and numbers of words up, lengths of words down."""
    language_identification: LanguageSection | None = None
    """Language identification."""
    cleaning: CleaningSection | None = None
    """Changes of the text before the filters."""
    length: LengthSection | None = None
    """Length."""
    characters: CharacterSection | None = None
    """Character shares."""
    japanese: JapaneseSection | None = None
    """Japanese letters."""
    banned_words: BannedWordSection | None = None
    """Words of pages nobody wants."""
    stop_words: StopWordSection | None = None
    """Words any running text has."""
    diversity: DiversitySection | None = None
    """How much the document says for its length."""
    sentences: SentenceSection | None = None
    """Sentences and paragraphs."""
    character_ngrams: CharacterNgramSection | None = None
    """Repetition by character n-grams."""
    repetition: RepetitionSection | None = None
    """Repetition by word n-grams, lines and paragraphs."""
    fineweb: FinewebSection | None = None
    """Line structure."""
    gopher: GopherSection | None = None
    """Word statistics and stop words."""


def _with_word_lists(profile: Profile, path: Path) -> Profile:
    """The profile with the words of its files among its own."""
    section = profile.banned_words
    if section is None:
        return profile
    words = list(section.words)
    for name in section.files:
        try:
            lines = (path.parent / name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "cannot read a list of banned words",
                where=f"{path}: banned_words.files",
                got=f"{path.parent / name}: {error}",
                expected="a UTF-8 file with a word a line, beside the profile",
            ) from error
        words += [word for line in lines if (word := line.strip()) and not word.startswith("#")]
    if not words:
        raise ConfigError(
            "banned_words without a word", where=f"{path}: banned_words", expected="`words` or `files`"
        )
    updated = section.model_copy(update={"words": list(dict.fromkeys(words)), "files": []})
    return profile.model_copy(update={"banned_words": updated})


def load_profile(name: str, folders: Sequence[str]) -> Profile:
    """Read ``<folder>/<name>.yaml`` from the first folder that has it.

    Relative folders are looked up from the working directory, then among what ships with Tsugiki.

    Raises:
        ConfigError: no folder has it, or it does not validate.
    """
    tried: list[Path] = []
    for folder in folders:
        for base in dict.fromkeys([Path(folder).expanduser(), expand_path(folder), shipped(Path(folder))]):
            if base is None:
                continue
            candidate = base / f"{name}.yaml"
            if candidate.is_file():
                return _with_word_lists(load_config(Profile, candidate), candidate)
            tried.append(candidate)
    available = sorted({item.stem for path in tried for item in path.parent.glob("*.yaml")})
    raise ConfigError(
        f"no quality profile '{name}'",
        where="corpus.profiles",
        got=", ".join(folders),
        expected=f"one of {', '.join(available)}" if available else "a folder of profiles",
        fix=f"add {name}.yaml (see docs/corpus.md), or set `filter: false` on the source",
    )
