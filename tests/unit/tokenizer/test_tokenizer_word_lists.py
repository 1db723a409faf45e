"""Word lists: where they come from, what counts as one, and what they do to the pieces."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import sentencepiece
import wordfreq
from test_tokenizer_byte_level import trained
from tokenizer_material import fixture_texts, mistral_base, write_corpus

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pipeline import load_experiment, stages
from tsugiki.tokenizer.base.base import load_base
from tsugiki.tokenizer.base.sample import normalise
from tsugiki.tokenizer.config import TokenizerConfig
from tsugiki.tokenizer.extend import run
from tsugiki.tokenizer.learning.candidates import CandidateFilter, Limits
from tsugiki.tokenizer.learning.protected import protected_words
from tsugiki.tokenizer.learning.text import script_rules, word_lists
from tsugiki.tokenizer.learning.word_lists import default_list, load_word_list, read_word_list, word_runs

SMOKE = Path(__file__).resolve().parents[3] / "configs" / "smoke.yaml"
NEW_WORDS = {"ja": "鍛冶屋", "vi": "khuếch", "km": "ព្យាបាល"}
"""Words that the text of the tests does not hold."""


def config(**settings):
    settings = {"size": 60, "languages": {"ja": 1.0}, "minimum_count": 2, **settings}
    return TokenizerConfig.model_validate({"extend": settings, "report_bytes_per_language": 2000})


def rule(language):
    return script_rules(config(languages={language: 1.0}).extend, phrases=True)[0][language]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    texts = {language: fixture_texts(language) for language in (*NEW_WORDS, "en")}
    assert not any(word in text for word in NEW_WORDS.values() for found in texts.values() for text in found)
    return {"base": mistral_base(root / "base"), "corpus": write_corpus(root / "corpus", texts)}


@pytest.mark.parametrize(
    ("language", "name"),
    [
        *[(language, "wordfreq") for language in ("ja", "zh", "zh-CN", "vi", "id", "ms", "tl", "pt-BR")],
        # Traditional characters, morphemes, and languages that wordfreq does not have.
        *[(language, "none") for language in ("zh-TW", "zh-Hant", "yue", "ko", "th", "km", "lo", "my")],
    ],
)
def test_which_languages_have_a_list_by_default(language, name):
    assert default_list(language) == name


def test_wordfreq_gives_its_own_frequencies():
    words = load_word_list("tl", "wordfreq")
    assert words["hindi"] == pytest.approx(wordfreq.word_frequency("hindi", "fil"), rel=0.01)
    assert load_word_list("tl", "none") == {}


def test_a_file_of_words(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_bytes("\ufeffក\t3\r\nខ គ\t0.5\n\nឃ\nក\t1\n".encode())
    assert read_word_list(path, "here") == {"ក": 4.0, "ខ គ": 0.5, "ឃ": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ក\tmany\n".encode(), r"words.tsv:1\n.*'many'"),
        ("ក\t2\nខ\t-1\n".encode(), r"(?s)above 0.*words.tsv:2"),
        ("ក\t2\nខ\tnan\n".encode(), r"(?s)above 0.*words.tsv:2"),
        ("ក\t2\nខ\t3\n".encode() + b"\xff\t1\n", r"words.tsv:3\n.*utf-8"),
        (b"\n \n", "empty"),
    ],
)
def test_a_file_that_is_no_word_list(tmp_path, content, message):
    path = tmp_path / "words.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_word_list(path, "tokenizer.extend.word_lists.km")


@pytest.mark.parametrize(
    ("language", "setting", "message"),
    [
        ("km", "wordfreq", r"no word list for 'km'[\s\S]*expected: one of ar, bg"),
        ("km", "pythainlp", "for 'th' only"),
        ("km", "wordfrek", r"no such word list[\s\S]*word_lists.km[\s\S]*wordfrek"),
    ],
)
def test_lists_that_do_not_exist(language, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_word_list(language, setting)


@pytest.mark.skipif(
    importlib.util.find_spec("pythainlp") is None, reason="the extra 'words' is not installed"
)
def test_thai_words_of_pythainlp():
    words = load_word_list("th", "pythainlp")
    assert max(words, key=words.__getitem__) == "ที่" and len(words) > 100_000


def test_words_make_up_their_share_of_the_letters():
    words = {"東京": 3.0, "京都": 1.0, "mixed東": 50.0, "Tokyo": 50.0, "東 京": 50.0}
    runs = word_runs(words, "ja", rule("ja"), lambda text: text, 1600)
    assert runs == {"東京": 600, "京都": 200}
    # A word stands after a space where the language has spaces; what is seldom is rounded off.
    words = {"Không": 0.9, "được": 0.1, "rồi": 1e-9}
    runs = word_runs(words, "vi", rule("vi"), lambda text: text, 590)
    assert runs == {" Không": 90, " được": 10}
    assert word_runs({"Tokyo": 1.0}, "ja", rule("ja"), lambda text: text, 100) == {}


def test_words_are_normalised_as_the_text_is():
    both = {"\u30ac": 1.0, "\u30ab\u3099": 1.0}  # GA, and KA with a voiced sound mark
    runs = word_runs(both, "ja", rule("ja"), lambda text: normalise(text, "nfkc"), 10)
    assert runs == {"\u30ac": 10}


def lists(**settings):
    extend = config(**settings).extend
    return word_lists(extend, script_rules(extend, phrases=True)[0])


def test_languages_without_a_list_are_left_out(tmp_path):
    languages = {"ja": 1.0, "vi": 1.0, "km": 1.0, "sr": 1.0}  # wordfreq's Serbian is in Latin letters
    assert list(lists(languages=languages, word_lists={"vi": "none"})) == ["ja"]
    assert lists(word_list_share=0.0) == lists(method="sentencepiece") == {}
    with pytest.raises(ConfigError, match="continued merges only"):
        lists(method="sentencepiece", word_lists={"ja": "wordfreq"})
    (tmp_path / "words.tsv").write_text("hello\t3\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no word of 'km'[\s\S]*hello[\s\S]*Khmer"):
        lists(languages={"km": 1.0}, word_lists={"km": str(tmp_path / "words.tsv")})


@pytest.mark.slow
@pytest.mark.parametrize("language", list(NEW_WORDS))
def test_a_word_that_the_text_lacks_becomes_a_piece(inputs, tmp_path, language):
    (tmp_path / "words.tsv").write_text(f"{NEW_WORDS[language]}\t10\n", encoding="utf-8")
    tokens = []
    for setting in ("none", str(tmp_path / "words.tsv")):
        out = tmp_path / setting.replace("/", "-")
        out.mkdir()
        settings = config(languages={language: 1.0}, word_lists={language: setting}, protect_unseen=False)
        run(settings, inputs, out, StageContext(workers=1))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
        tokens.append(processor.encode(f"x {NEW_WORDS[language]}", out_type=str)[1:])
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert report["word_lists"] == ({} if setting == "none" else {language: f"{setting}, 1 words"})
        page = (out / "report.html").read_text(encoding="utf-8")
        pieces = report["pieces_by_language"][language]
        row = rf'>{language}</span></span></th><td class="number">{pieces}</td><td>{re.escape(setting)}'
        assert re.search(row, page) is not None
    assert len(tokens[0]) > 2
    assert "".join(tokens[1]).replace("▁", "") == NEW_WORDS[language] and len(tokens[1]) <= 2


@pytest.mark.slow
def test_a_byte_level_base_takes_word_lists_too(inputs, tmp_path):
    from tokenizers import Tokenizer

    (tmp_path / "base").mkdir()
    trained().save(str(tmp_path / "base" / "tokenizer.json"))
    (tmp_path / "words.tsv").write_text(f"{NEW_WORDS['vi']}\t10\n", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    lists = {"vi": str(tmp_path / "words.tsv")}
    settings = config(languages={"vi": 1.0}, word_lists=lists, protect_unseen=False)
    run(settings, {**inputs, "base": tmp_path / "base"}, out, StageContext(workers=1))
    old, new = (Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in ("base", "out"))
    text = f" {NEW_WORDS['vi']}"
    assert len(new.encode(text).ids) == 1 < len(old.encode(text).ids)


def test_another_word_list_is_another_vocabulary(tmp_path):
    path = tmp_path / "words.tsv"
    overrides = [
        "tokenizer.extend.languages={km: 1.0}",
        f"tokenizer.extend.word_lists={{km: {path}}}",
        f"run_dir={tmp_path / 'run'}",
    ]
    experiment = load_experiment(SMOKE, overrides)
    chosen = [stage for stage in stages(experiment.config) if stage.name == "tokenizer"]
    place = ("tokenizer", "extend", "word_lists", "km")
    assert (place, str(path)) in experiment.missing_inputs(chosen)
    path.write_text("ក\t3\n", encoding="utf-8")
    assert chosen[0].sources() == [path]
    assert place not in [found for found, _ in experiment.missing_inputs(chosen)]


def test_words_of_english_at_large_are_protected():
    extend = config(languages={"id": 1.0, "km": 1.0}).extend
    found = set(protected_words(extend, {"id": {"pencil": 9}, "km": {"banana": 9, "apple": 1}}))
    assert {"kangaroo", "Kangaroo", "apple", "pencil"} <= found
    # English has the first less often than Indonesian at large, the second less often than the sample of Khmer,
    # which has no list.
    assert wordfreq.word_frequency("dan", "en") > 1e-6
    assert not {"dan", "Dan", "banana"} & found
    assert wordfreq.word_frequency("sesquipedalian", "en") < 1e-6 and "sesquipedalian" not in found
    assert protected_words(config(languages={"id": 1.0}, protect_unseen=False).extend, {}) == []


@pytest.mark.parametrize(
    ("piece", "english", "indonesian", "refused"),
    [
        ("utan", {"bhutan": 1e-6}, {}, True),  # a name that the corpus need not hold
        ("utan", {"bhutan": 1e-8}, {}, False),  # too rare to count alone
        (
            "utan",
            {f"{first}hutan": 1e-8 for first in "abcdefghijklmnopqrstuvwxyz"},
            {},
            True,
        ),  # but not in many
        ("utan", {"bhutan": 1e-6}, {"bhutan": 1e-4}, False),  # quoted from Indonesian
        ("utan", {"bhutan": 1e-6}, {"bhutan": 1e-5}, True),  # as often as names are
        ("▁workflows", {"workflows": 1e-8}, {}, True),  # an English word, however rare
        ("▁workflows", {"workflows": 1e-8}, {"workflows": 2e-8}, False),
        ("ắbắc", {"hutắbắc": 1e-3}, {}, False),  # not English
    ],
)
def test_what_a_piece_may_change_of_english_that_nobody_has_seen(
    monkeypatch, piece, english, indonesian, refused
):
    from tsugiki.tokenizer.learning import protected

    lists = {"en": english, "id": indonesian, "vi": {}}
    monkeypatch.setattr(protected, "load_word_list", lambda language, name: lists[language])
    extend = config(languages={"id": 1.0, "vi": 1.0}).extend
    every = script_rules(extend, phrases=True)[1]

    def cut(texts):
        halves = [text.replace(" ", "▁") for text in texts]
        return [
            [t[: len(t) - 4], t[-4:-2], t[-2:]] if not t.endswith("workflows") else [t[:4], t[4:]]
            for t in halves
        ]

    found = protected.pieces_of_unseen_words(extend, every, {}, cut)
    assert (piece in found) == refused
    assert not protected.pieces_of_unseen_words(
        extend, script_rules(config().extend, phrases=True)[1], {}, cut
    )


@pytest.mark.parametrize(("limit", "longest"), [(32, 32), (48, 48)])
def test_no_piece_is_longer_than_the_decoders_of_others_hold(inputs, limit, longest):
    limits = Limits.of(config(languages={"th": 1.0}, maximum_piece_bytes=limit).extend)
    assert not limits.exceeded("ก" * (longest // 3)) and limits.exceeded("ก" * (longest // 3 + 1))
    assert Limits.of(config().extend).bytes == 32
    refuse = CandidateFilter(load_base(inputs["base"]), [rule("ja")], set(), Limits.of(config().extend))
    assert refuse("あ" * 11, 0, 0) == "long" != refuse("あ" * 10, 0, 0)
    with pytest.raises(ValueError, match="less than or equal to 48"):
        config(maximum_piece_bytes=49)


@pytest.mark.slow
def test_an_english_word_that_the_corpus_lacks_does_not_change(tmp_path):
    base = mistral_base(tmp_path / "base")
    words = ["tulis", "tulisan", "tulus", "tulang", "penulis"]
    texts = {"id": [f"{' '.join(words)} {n} {' '.join(words[::-1])}" for n in range(40)]}
    texts["en"] = fixture_texts("en")
    assert not any("tulip" in text for text in texts["en"])
    corpus = write_corpus(tmp_path / "corpus", texts)
    tokens = {}
    for unseen in (True, False):
        out = tmp_path / str(unseen)
        out.mkdir()
        settings = config(languages={"id": 1.0}, protect_unseen=unseen)
        run(settings, {"base": base, "corpus": corpus}, out, StageContext(workers=1))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
        tokens[unseen] = processor.encode("He can fit 6 red tulips", out_type=str)
    old = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    assert tokens[True] == old.encode("He can fit 6 red tulips", out_type=str) != tokens[False]


@pytest.mark.slow
def test_no_english_word_at_large_changes_over_a_byte_level_base(tmp_path):
    from tokenizers import Tokenizer

    words = ["tulis", "tulisan", "tulus", "kangguru", "kangkung", "pensil", "pensiun"]
    texts = {"id": [f"{' '.join(words)} {n} {' '.join(words[::-1])}" for n in range(40)]}
    corpus = write_corpus(tmp_path / "corpus", {**texts, "en": fixture_texts("en")})
    (tmp_path / "base").mkdir()
    trained().save(str(tmp_path / "base" / "tokenizer.json"))
    old = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    changed = {}
    for unseen in (True, False):
        out = tmp_path / str(unseen)
        out.mkdir()
        settings = config(languages={"id": 1.0}, protect_unseen=unseen)
        english = [f" {word}" for word in protected_words(config(languages={"id": 1.0}).extend, {})]
        run(settings, {"base": tmp_path / "base", "corpus": corpus}, out, StageContext(workers=1))
        new = Tokenizer.from_file(str(out / "tokenizer.json"))
        pairs = zip(old.encode_batch(english), new.encode_batch(english), strict=True)
        changed[unseen] = sum(before.ids != after.ids for before, after in pairs)
    assert changed[True] == 0 < changed[False]
