"""``language_identification``: without downloads.

The packaged default is CLD2 (``pycld2``, Apache-2.0): on NTREX-128 it names all eleven languages
here right, Malay and Indonesian included, where fastText's lid.176 takes 87 % of Malay for
Indonesian. Its result is the *share* of a document's text that is in a language. A fastText model
(GlotLID, lid.176) can be given by path; its result is the *probability* of the best label. The two
are different quantities, so a profile has a threshold for each.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import regex
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from pydantic import Field

from tsugiki.data.common.stats import DropWriter
from tsugiki.data.config import Language
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, Histogram, RuleSection, Share
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import ConfigError, EnvironmentError_

_CHARACTERS = 20_000
"""Only the beginning of a long document is identified: 52 MB/s, and more changes nothing."""

_CLD2 = {"zh-Hant": "zh-Hant", "zh-TW": "zh-Hant", "iw": "he", "jw": "jv", "fil": "tl"}
# GlotLID (ISO 639-3 + script) and lid.176 (ISO 639-1) labels
_FASTTEXT = {
    "jpn": "ja",
    "cmn": "zh",
    "zho": "zh",
    "yue": "zh",
    "wuu": "zh",
    "vie": "vi",
    "ind": "id",
    "tha": "th",
    "zsm": "ms",
    "msa": "ms",
    "khm": "km",
    "lao": "lo",
    "mya": "my",
    "fil": "tl",
    "tgl": "tl",
    "eng": "en",
    "kor": "ko",
}
# Characters pycld2 refuses: controls, surrogates, non-characters.
_REFUSED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


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


class Identifier(Protocol):
    """Scores the languages of a text."""

    def scores(self, text: str) -> dict[str, float]:
        """Score in 0…1 per language, best first."""


class Cld2Identifier:
    """CLD2: the share of the text in each of at most three languages."""

    def scores(self, text: str) -> dict[str, float]:
        """Shares in 0…1; text CLD2 cannot name counts for no language."""
        import pycld2

        sample = _REFUSED.sub(" ", text[:_CHARACTERS])
        try:
            _, _, details = pycld2.detect(sample, bestEffort=True)
        except pycld2.error:
            return {}
        found: dict[str, float] = {}
        for _, code, percent, _ in details:
            if code != "un" and percent > 0:
                code = _CLD2.get(code, code)
                found[code] = found.get(code, 0.0) + percent / 100
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def require_model(path: str) -> None:
    """Make sure that a model is there.

    Raises:
        ConfigError: it is not.
    """
    if not Path(path).is_file():
        raise ConfigError(
            "no such language identification model",
            where="corpus.language_identification.model",
            got=path,
            fix="give the path of a fastText .bin or .ftz file, or null for the packaged model",
        )


class FasttextIdentifier:
    """A fastText model from a local file: probabilities of its labels.

    Raises:
        ConfigError: no such file, or not a fastText model.
        EnvironmentError_: fastText is not installed.
    """

    def __init__(self, path: Path) -> None:
        require_model(str(path))
        self._model = _load_fasttext(str(path))

    def scores(self, text: str) -> dict[str, float]:
        """Probabilities of the five best labels."""
        line = text[:_CHARACTERS].replace("\n", " ")
        labels, values = self._model.predict(line, k=5)
        found: dict[str, float] = {}
        for label, value in zip(labels, values, strict=True):
            code, _, script = label.removeprefix("__label__").partition("_")
            language = _FASTTEXT.get(code, code)
            if language == "zh" and script == "Hant":
                language = "zh-Hant"
            found[language] = found.get(language, 0.0) + min(1.0, float(value))
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


@lru_cache(maxsize=2)
def _load_fasttext(path: str) -> Any:
    try:
        import fasttext
    except ImportError as error:
        raise EnvironmentError_(
            "a fastText model needs the fasttext package", fix="pip install fasttext-numpy2-wheel"
        ) from error
    try:
        return fasttext.load_model(path)
    except ValueError as error:
        raise ConfigError("not a fastText model", got=path) from error


def identifier(model: str | None) -> Identifier:
    """The identifier a configuration asks for."""
    return Cld2Identifier() if model is None else FasttextIdentifier(Path(model))


class LanguageFilter(BaseFilter):
    """Keeps documents in the expected language.

    datatrove's own filter downloads its model and stores the best label even when another one
    passed; this one records both.

    Where identification finds this language or a confusable one, the words that only one of them
    has decide; with as many of one as of the other, the model's better score.

    Args:
        language: expected language of the source.
        accepted: labels that count as that language; their scores are added.
        minimum: least score.
        model: fastText model, None for the packaged one.
        writer: receives what is dropped.
    """

    name = "language"

    def __init__(
        self,
        language: str,
        accepted: list[str],
        minimum: float,
        model: str | None,
        confusable: ConfusableSection | None,
        writer: DropWriter,
    ) -> None:
        super().__init__(writer)
        self.language = language
        self.accepted = accepted
        self.minimum = minimum
        self.model = model
        self.confusable = confusable
        self._identifier: Identifier | None = None
        if confusable is not None:
            self._own, self._other = (
                regex.compile(rf"\b(?:{'|'.join(map(regex.escape, words))})\b", regex.I)
                for words in (confusable.own_words, confusable.other_words)
            )

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the document is in the expected language."""
        if self._identifier is None:
            self._identifier = identifier(self.model)
        scores = self._identifier.scores(doc.text)
        if self.confusable is not None:
            scores = self._settled(scores, self.confusable.language, doc.text)
        share = min(1.0, sum(scores.get(label, 0.0) for label in self.accepted))
        found = next(iter(scores), "unknown")
        doc.metadata["language_share"] = round(share, 3)
        stats = self.exclusion_writer.stats
        stats.observe_value("language_share", share)
        if share >= self.minimum:
            stats.observe("language_found", self.language)
            return True
        doc.metadata["language_found"] = found
        stats.observe("language_found", found)
        return False, "uncertain" if found in self.accepted else f"is_{found}"

    def _settled(self, scores: dict[str, float], other: str, text: str) -> dict[str, float]:
        """Scores with those of both languages given to the one that the words speak for."""
        if other not in scores and self.language not in scores:
            return scores
        sample = text[:_CHARACTERS]
        own, foreign = len(self._own.findall(sample)), len(self._other.findall(sample))
        if own == foreign:
            return scores
        winner, loser = (self.language, other) if own > foreign else (other, self.language)
        total = scores.get(winner, 0.0) + scores.get(loser, 0.0)
        settled = {name: score for name, score in scores.items() if name != loser} | {winner: total}
        return dict(sorted(settled.items(), key=lambda item: (-item[1], item[0])))


@FILTERS.register(
    "language_identification",
    section=LanguageSection,
    order=30,
    title="In another language",
    rule="language",
    histograms=(Histogram("language_share", "Language identification", least="minimum_share"),),
)
def make(section: LanguageSection, context: FilterContext) -> PipelineStep | None:
    """The step of a profile; None where languages are not identified."""
    settings = context.identification
    if not settings.enabled:
        return None
    own = section.minimum_share if settings.model is None else section.minimum_probability
    return LanguageFilter(
        context.profile.language,
        [context.profile.language, *section.accept],
        own if settings.minimum_score is None else settings.minimum_score,
        settings.model,
        section.confusable,
        context.writer("language"),
    )
