"""Sections of profiles as files of data/filters: the known ones, a further one, and what is wrong with a name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from datatrove.data import Document

from tsugiki.data import profiles
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import CorpusConfig, LanguageIdentificationConfig
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import FilterContext, Histogram, RuleSection, ordered_filters, rule_of
from tsugiki.data.profiles import Profile, load_profile, profile_steps
from tsugiki.data.report import corpus_page, corpus_report
from tsugiki.experiment.errors import ConfigError

IN_ORDER = [
    "cleaning", "length", "language_identification", "characters", "japanese", "banned_words", "stop_words",
    "diversity", "sentences", "character_ngrams", "repetition", "fineweb", "gopher",
]  # fmt: skip
HEAD_KEYS = ["language", "scripts", "segmentation", "units_per_word"]
HEAD = "language: en\nscripts: [Latin]\n"


def test_the_sections_are_the_files_cheap_ones_first() -> None:
    assert [entry.name for entry in ordered_filters()] == IN_ORDER
    assert [name for name in Profile.model_fields if name in FILTERS] == IN_ORDER


def test_the_report_knows_rules_and_histograms_of_every_section() -> None:
    """A section that is added is in the waterfall at its place and its scores have a title and their limits."""
    steps = corpus_page._steps()
    places = [steps.index(rule_of(entry)) for entry in ordered_filters()]
    assert places == sorted(places) and steps.index("extraction") < places[0] < places[-1] < steps.index(
        "duplicate"
    )
    profile = Profile.model_validate(
        {"language": "en", "scripts": ["Latin"], "diversity": {"source": "x", "maximum_compression": 0.9}}
    )
    config = CorpusConfig.model_validate(
        {"sources": [{"name": "s", "language": "en", "format": "text", "path": "x"}]}
    )
    assert corpus_report._limits(config, profile) == {"compression": "at most 0.9"}
    assert dict(corpus_page._histograms())["compression"] == "Compressed size"


@pytest.mark.parametrize("name", IN_ORDER)
def test_what_a_section_says_of_itself(name: str) -> None:
    facts = FILTERS.facts(name)
    assert issubclass(facts["section"], RuleSection) and facts["title"]
    for histogram in facts.get("histograms", ()):
        assert isinstance(histogram, Histogram)
        limits = [field for field in (histogram.least, histogram.most) if field is not None]
        assert limits and set(limits) <= set(facts["section"].model_fields)


def test_an_unknown_section_names_the_known_ones_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "en.yaml"
    path.write_text(HEAD + "lenght: {source: x}\n")
    with pytest.raises(ConfigError) as caught:
        load_profile("en", [str(tmp_path)])
    for part in (
        "unknown key 'lenght'",
        f"{path}:3",
        "did you mean 'length'?",
        ", ".join(sorted([*IN_ORDER, *HEAD_KEYS])),
    ):
        assert part in str(caught.value)


def test_a_profile_reaches_a_worker_process() -> None:
    profile = load_profile("ja", ["configs/filters"])
    assert pickle.loads(pickle.dumps(profile)) == profile


def test_steps_of_a_profile_and_those_that_are_always_there() -> None:
    profile = Profile.model_validate(
        {
            "language": "en",
            "scripts": ["Latin"],
            "language_identification": {"source": "x"},
            "gopher": {"source": "x"},
        }
    )
    stats = DocumentStats()

    def names(**identification: object) -> list[str]:
        settings = LanguageIdentificationConfig.model_validate(identification)
        return [name for name, _ in profile_steps(FilterContext(profile, settings, stats))]

    assert names() == ["length", "language_identification", "gopher"]
    assert names(enabled=False) == ["length", "gopher"]


def test_a_new_file_is_a_new_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What discovery does with a further file: the section is read, checked, run and counted."""
    module = tmp_path / "shouting.py"
    module.write_text(
        '''
from datatrove.pipeline.filters.base_filter import BaseFilter
from tsugiki.data.filters import FILTERS
from tsugiki.data.filters.base import RuleSection, Share

class ShoutingSection(RuleSection):
    """Capital letters."""
    maximum_share: Share = 0.5

class ShoutingFilter(BaseFilter):
    name = "shouting"
    def __init__(self, section, writer):
        super().__init__(writer)
        self.section = section
    def filter(self, doc):
        return sum(map(str.isupper, doc.text)) <= self.section.maximum_share * len(doc.text) or (False, "capitals")

@FILTERS.register("shouting", section=ShoutingSection, order=25, title="Mostly capital letters")
def make(section, context):
    return ShoutingFilter(section, context.writer("shouting"))
'''
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(FILTERS, "_entries", dict(FILTERS._entries))
    __import__("shouting")
    model = profiles.profile_model()
    with pytest.raises(ValueError, match="less than or equal to 1"):
        model.model_validate(
            {"language": "en", "scripts": ["Latin"], "shouting": {"source": "x", "maximum_share": 2}}
        )
    profile = model.model_validate({"language": "en", "scripts": ["Latin"], "shouting": {"source": "x"}})
    stats = DocumentStats()
    steps = profile_steps(FilterContext(profile, LanguageIdentificationConfig(), stats))
    assert [name for name, _ in steps] == ["length", "shouting"]
    texts = ["quiet words", "LOUD WORDS"]
    documents = steps[1][1].run(iter([Document(text, text) for text in texts]))
    assert [document.text for document in documents] == ["quiet words"]
    assert {rule: count.documents for rule, count in stats.dropped.items()} == {"shouting.capitals": 1}
