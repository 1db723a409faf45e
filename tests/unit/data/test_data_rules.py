"""Every rule against values computed by hand, and the fast filters against datatrove's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

from tsugiki.data.common.segmentation import FastTokenizer, tokenizer_for
from tsugiki.data.common.stats import DocumentStats, DropWriter
from tsugiki.data.common.workspace import KEY_TYPE
from tsugiki.data.config import HeldoutConfig, LineDedupConfig, MinhashSettings
from tsugiki.data.dedup.decontamination import Contamination, comparable
from tsugiki.data.dedup.exact import repeated
from tsugiki.data.dedup.heldout import heldout_count
from tsugiki.data.dedup.line_dedup import LINE_TYPE, repeated_lines
from tsugiki.data.dedup.minhash import FastSignature, minhash_config
from tsugiki.data.filters.banned_words import BannedWordFilter, BannedWordSection
from tsugiki.data.filters.character_ngrams import CharacterNgramFilter, CharacterNgramSection
from tsugiki.data.filters.characters import CharacterFilter, CharacterSection
from tsugiki.data.filters.cleaning import Cleaner, CleaningSection
from tsugiki.data.filters.diversity import DiversityFilter, DiversitySection, entropy_bits
from tsugiki.data.filters.gopher_quality import FastQualityFilter
from tsugiki.data.filters.gopher_repetition import FastRepetitionFilter
from tsugiki.data.filters.japanese import JapaneseFilter, JapaneseSection
from tsugiki.data.filters.length import LengthFilter, LengthSection
from tsugiki.data.filters.sentences import SentenceFilter, SentenceSection
from tsugiki.data.filters.stop_words import StopWordFilter, StopWordSection
from tsugiki.data.formatters.extraction import normalise
from tsugiki.data.profiles import load_profile
from tsugiki.experiment.config.shipped import shipped_folder
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.text.rolling_hash import SpanHasher


def writer() -> DropWriter:
    return DocumentStats().writer("rule")


def outcome(step: Any, text: str) -> str:
    """``kept`` or the reason."""
    result = step.filter(Document(text, "x"))
    return "kept" if result is True else result[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a  \n\n\n\nb\u3000\n", "a\n\nb"),
        ("a\x00b\x07c\ufeff", "abc"),
        ("a\ud800b", "ab"),
        ("ก็\u200bไม่", "ก็\u200bไม่"),
    ],
)
def test_normalise(before: str, after: str) -> None:
    assert normalise(before) == after


@pytest.mark.parametrize(
    ("kind", "text", "units"),
    [
        ("words", "Tôi đi học, it's a test-case.", ["Tôi", "đi", "học", ",", "it's", "a", "test-case", "."]),
        ("words", "e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("script_runs", "東京タワーの2024年版です。", ["東京", "タワー", "の", "2024", "年版", "です", "。"]),
        ("characters", "我们去，2024年", ["我", "们", "去", "，", "2024", "年"]),
        ("syllables", "ភាសាខ្មែរ", ["ភា", "សា", "ខ្មែ", "រ"]),
        ("syllables", "មាន\u200bពាក្យ", ["មា", "ន", "ពា", "ក្យ"]),
        ("syllables", "မြန်မာဘာသာ", ["မြန်", "မာ", "ဘာ", "သာ"]),
        ("syllables", "ที่น้ำ", ["ที่", "น้ำ"]),
        ("syllables", "ສະບາຍດີ", ["ສະ", "ບາ", "ຍ", "ດີ"]),
    ],
)
def test_segmentation(kind: Any, text: str, units: list[str]) -> None:
    assert FastTokenizer(kind).word_tokenize(text) == units


@pytest.mark.parametrize("kind", ["words", "script_runs", "characters", "syllables"])
def test_segmentation_loses_nothing(kind: Any) -> None:
    text = "東京 Tower、ขอบคุณ ភាសា မြန်မာ ລາວ tiếng Việt 3.5% — ok_1"
    assert "".join(FastTokenizer(kind).word_tokenize(text)) == "".join(text.split())


def test_length() -> None:
    step = LengthFilter(
        LengthSection(source="t", minimum_characters=5, maximum_characters=9, minimum_letters=4),
        writer(),
    )
    assert [outcome(step, text) for text in ("abcd", "abcde", "abc12", "abcdefghij", "日本語ですか")] == [
        "too_short",
        "kept",
        "few_letters",
        "too_long",
        "kept",
    ]


def test_character_shares() -> None:
    section = CharacterSection(
        source="t", minimum_script_share=0.5, maximum_digit_share=0.3, maximum_symbol_share=0.25
    )
    step = CharacterFilter(section, ["Thai"], writer())
    assert outcome(step, "ภาษาไทย ab") == "kept"  # 7 of 9
    assert outcome(step, "ไทย abcd") == "other_script"  # 3 of 7
    assert outcome(step, "ไทยไทย12") == "kept"  # 2 of 8
    assert outcome(step, "ไทยไ123") == "digits"  # 3 of 7
    assert outcome(step, "ไทยไทย!!") == "kept"  # 2 of 8
    assert outcome(step, "ไทยไทย!!!") == "symbols"  # 3 of 9


def test_japanese_letters_as_the_swallow_corpus_counts_them() -> None:
    section = JapaneseSection(
        source="t", minimum_letters=6, minimum_share=0.5, minimum_hiragana=0.2, maximum_katakana=0.5
    )
    step = JapaneseFilter(section, writer())
    assert outcome(step, "これは本です。") == "kept"
    assert outcome(step, "これは本") == "few_letters"
    assert outcome(step, "これは本です。abcdefgh") == "little_japanese"  # 7 of 15
    assert outcome(step, "東京特許許可局、の") == "little_hiragana"  # 1 of 9
    assert outcome(step, "テレビとアニメの") == "much_katakana"  # 6 of 8
    assert outcome(step, "コーヒーを飲む人") == "kept"  # the long vowel sign does not count: 2 of 6


def test_sentences_as_the_swallow_corpus_counts_them() -> None:
    def step(**limits: float) -> SentenceFilter:
        return SentenceFilter(SentenceSection(source="t", **limits), writer())

    # Lines: a。b。 | a。b。 | c。  Sentences: a。 b。 a。 b。 c。
    text = "あ。い。\nあ。い。\nう。"
    assert outcome(step(duplicate_paragraphs=0.34), text) == "kept"  # 1 of 3
    assert outcome(step(duplicate_paragraphs=0.33), text) == "duplicate_paragraphs"
    assert outcome(step(duplicate_paragraph_characters=0.39), text) == "duplicate_paragraph_characters"
    assert outcome(step(duplicate_sentences=0.4), text) == "kept"  # 2 of 5
    assert outcome(step(duplicate_sentences=0.39), text) == "duplicate_sentences"
    assert outcome(step(duplicate_sentence_characters=0.39), text) == "duplicate_sentence_characters"
    assert outcome(step(minimum_mean_characters=2.1), text) == "short"  # mean 2
    assert outcome(step(maximum_mean_characters=1.9), text) == "long"
    assert outcome(step(maximum_characters=1), text) == "one_too_long"
    assert outcome(step(maximum_ellipsis_share=0.3), "続く…\nもっと・\n終わり。") == "ellipsis"


def test_diversity() -> None:
    def step(**limits: float) -> DiversityFilter:
        return DiversityFilter(DiversitySection(source="t", **limits), writer())

    assert entropy_bits("aabb") == 1.0
    assert entropy_bits("abcdabcd") == 2.0
    assert outcome(step(minimum_entropy_bits=2.0), "abcdabcd") == "kept"
    assert outcome(step(minimum_entropy_bits=2.01), "abcdabcd") == "entropy"
    assert outcome(step(minimum_unique_characters=0.5), "aabb") == "kept"
    assert outcome(step(minimum_unique_characters=0.51), "aabb") == "few_characters"
    assert outcome(step(minimum_compression=0.3), "abc" * 200) == "compresses_well"
    noise = "".join(chr(random.Random(1).randrange(0x4E00, 0x9000) + n % 7) for n in range(9))
    assert outcome(step(maximum_compression=0.7), noise) == "compresses_badly"


def test_stop_and_banned_words() -> None:
    section = StopWordSection(source="t", words=["the", "of", "and"], minimum_different=2)
    assert outcome(StopWordFilter(section, True, writer()), "The end of it") == "kept"
    assert outcome(StopWordFilter(section, True, writer()), "the then offer the") == "few_different"
    section = StopWordSection(source="t", words=["的", "是"], minimum_different=1, minimum_share=0.2)
    assert outcome(StopWordFilter(section, False, writer()), "我的书是") == "kept"  # 2 of 4
    assert outcome(StopWordFilter(section, False, writer()), "我家有很多的书") == "few"  # 1 of 7
    banned = BannedWordSection(source="t", words=["casino"], maximum_share=0.25)
    assert outcome(BannedWordFilter(banned, True, writer()), "Casino and other things to do here") == "kept"
    assert outcome(BannedWordFilter(banned, True, writer()), "casino bonus CASINO") == "share"


def test_cleaning() -> None:
    section = CleaningSection(
        source="t", punctuation_by_majority=True, footer_lines=2, footer_phrases=["関連記事"]
    )
    stats = DocumentStats()
    step = Cleaner(section, stats)
    assert step.cleaned("本文，です．これ，も．はい、") == "本文、です。これ、も。はい、"
    assert step.cleaned("本文、です。一つ，だけ") == "本文、です。一つ，だけ"
    assert step.cleaned("関連記事の話\n二\n三\n関連記事\n一覧") == "関連記事の話\n二\n三"
    assert list(step.run(iter([Document("関連記事", "x")]))) == []  # type: ignore[arg-type]
    assert stats.dropped["cleaning.only_footer"].documents == 1


def test_character_ngrams_as_the_swallow_corpus_defines_them() -> None:
    def step(top: dict[int, float], duplicate: dict[int, float]) -> CharacterNgramFilter:
        return CharacterNgramFilter(CharacterNgramSection(source="t", top=top, duplicate=duplicate), writer())

    # abab: ab ba ab -> the most frequent is 2 of 3 occurrences; 1 of 2 different ones is repeated.
    assert outcome(step({2: 0.67}, {}), "abab") == "kept"
    assert outcome(step({2: 0.66}, {}), "abab") == "top_2"
    assert outcome(step({}, {2: 0.5}), "abab") == "kept"
    assert outcome(step({}, {2: 0.49}), "abab") == "duplicate_2"
    assert outcome(step({2: 0.0}, {5: 0.0}), "a") == "kept"


def documents(count: int) -> list[str]:
    """Random texts with all kinds of repetition, in several scripts."""
    rng = random.Random(11)
    words = ["the", "of", "a", "#", "...", "-", "•", "42", "x1", "don't"]
    words += ["川", "東京", "です", "。", "ที่", "และ"]
    texts: list[str] = []
    for _ in range(count):
        size = rng.choice((1, 5, 40, 200))
        pool = rng.sample(words, rng.randint(2, len(words)))
        parts = [rng.choice(pool) for _ in range(size)]
        if rng.random() < 0.5:
            cut = parts[: rng.randint(1, 12)]
            parts += cut * rng.randint(1, 6)
        lines = [" ".join(parts[place : place + 9]) for place in range(0, len(parts), 9)]
        if rng.random() < 0.15:
            lines = [rng.choice(lines) for _ in range(12)]
        texts.append(rng.choice(("\n", "\n\n", " ")).join(lines))
    return texts


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_fast_repetition_agrees_with_datatrove(kind: Any) -> None:
    words = tokenizer_for(kind)
    limits = {"top_n_grams": ((2, 0.2), (3, 0.18)), "dup_n_grams": ((3, 0.15), (5, 0.3))}
    slow = GopherRepetitionFilter(language=words, dup_line_frac=0.5, **limits)
    fast = FastRepetitionFilter(language=words, dup_line_frac=0.5, **limits)
    reasons = set()
    for text in documents(300):
        expected = slow.filter(Document(text, "x"))
        assert fast.filter(Document(text, "x")) == expected, text
        reasons.add(expected if expected is True else expected[1])
    assert {True, "top_2_gram", "duplicated_3_n_grams", "dup_line_frac"} <= reasons


def test_fast_quality_agrees_with_datatrove() -> None:
    words = tokenizer_for("words")
    options = {
        "min_doc_words": 3,
        "max_doc_words": 150,
        "min_stop_words": 2,
        "stop_words": ["the", "of", "a"],
    }
    slow = GopherQualityFilter(language=words, min_avg_word_length=1.5, **options)
    fast = FastQualityFilter(language=words, min_avg_word_length=1.5, **options)
    reasons = set()
    for text in documents(400):
        if not any(word.strip("#.-•。") for word in words.word_tokenize(text)):
            continue  # datatrove divides by zero
        expected = slow.filter(Document(text, "x"))
        assert fast.filter(Document(text, "x")) == expected, text
        reasons.add(expected if expected is True else expected[1])
    assert len(reasons) >= 6


def test_fast_signature_arithmetic_is_datatroves() -> None:
    slow = MinhashDedupSignature("/tmp/unused", minhash_config(MinhashSettings()), tokenizer_for("words"))
    fast = FastSignature("/tmp/unused", minhash_config(MinhashSettings()), tokenizer_for("words"))
    shingles = np.random.default_rng(1).integers(0, 1 << 63, (2000, 1), dtype=np.uint64) * np.uint64(2)
    assert fast.get_signature(shingles) == slow.get_signature(shingles)
    text = "one two three four five six seven"
    assert len(fast.get_shingles(text)) == len(slow.get_shingles(text)) == 3
    assert len(fast.get_shingles("one two three four")) == 0


def test_marks_survive_in_minhash() -> None:
    step = FastSignature("/tmp/unused", minhash_config(MinhashSettings()), tokenizer_for("script_runs"))
    plain, voiced = "か と き と く と け と こ", "が と ぎ と ぐ と げ と ご"
    first, second = step.get_shingles(plain), step.get_shingles(voiced)
    assert not set(first.ravel().tolist()) & set(second.ravel().tolist())


def test_hashes_do_not_depend_on_position() -> None:
    hasher = SpanHasher("xabcyyabc")
    windows = hasher.windows(3).tolist()
    assert windows[1] == windows[6]
    assert len(set(windows)) == 6
    assert hasher.windows(10).tolist() == []


def keys(rows: list[tuple[int, int]]) -> Any:
    return np.array([(high, 0, url, 0, 0) for high, url in rows], dtype=KEY_TYPE)


@pytest.mark.parametrize("in_memory", [100, 2])
def test_exact_duplicates_keep_the_first(in_memory: int) -> None:
    arrays = [keys([(5, 1), (7, 0), (5, 2)]), keys([(1 << 63, 2), (7, 0), (9, 3)]), keys([])]
    found = repeated(arrays, ("text_high", "text_low"), keys_in_memory=in_memory)
    assert [part.tolist() for part in found] == [[2], [1], []]
    found = repeated(arrays, ("url",), ignore_zero=True, keys_in_memory=in_memory)
    assert [part.tolist() for part in found] == [[], [0], []]


@pytest.mark.parametrize("in_memory", [100, 3])
def test_repeated_lines_need_number_and_share(in_memory: int) -> None:
    # (host, line, documents); line 0 counts the host's documents, over both tables: 20 and 4.
    first = np.array([(1, 0, 10), (1, 5, 9), (1, 6, 1), (2, 0, 4), (2, 5, 4)], dtype=LINE_TYPE)
    second = np.array([(1, 0, 10), (1, 5, 2), (1, 7, 10)], dtype=LINE_TYPE)
    config = LineDedupConfig(enabled=True, minimum_documents=10, minimum_share=0.55)
    found = repeated_lines([first, second], config, rows_in_memory=in_memory)
    assert [(int(row["host"]), int(row["line"])) for row in found] == [(1, 5)]  # 11 of 20


@pytest.mark.parametrize(
    ("documents", "fraction", "most", "expected"),
    [
        (100, 0.02, None, 2),
        (10, 0.02, None, 1),
        (1, 0.5, None, 0),
        (1000, 0.5, 20, 20),
        (100, 0, None, 0),
        (3, 0.99, None, 2),
    ],
)
def test_number_of_heldout_documents(
    documents: int, fraction: float, most: int | None, expected: int
) -> None:
    assert heldout_count(documents, HeldoutConfig(fraction=fraction, maximum_documents=most)) == expected


def test_contamination_ignores_spacing_case_and_width() -> None:
    assert comparable("Ａ－ b,Ｃ１ が") == "abc1が"
    english = "a long enough question about the height of mountains in winter"
    japanese = "富士山の高さは何メートルですか答えなさい"
    known = Contamination([("en", 3, english), ("ja", 0, japanese)], length=30)
    assert known.find("So: A LONG enough-question, about the height of mountains?")[0][:2] == ("en", 3)
    assert known.find("問題。富士山の高さは、何メートルですか答えなさい。")[0][:2] == ("ja", 0)
    assert known.find("a long enough question") == []  # 19 characters
    assert known.find("富士山の高さは何メートル") == []  # 12 of the 15 that Japanese needs
    assert known.find("富士山の高さは何メートルですか") == [("ja", 0, "富士山の高さは何メートルですか")]  # 15
    mixed = Contamination([("ja", 1, "これはAmerican Society for Testing Materialsの規格である")], length=30)
    assert mixed.find("the american society for testing of") == []  # 25 Latin letters
    assert mixed.find("American Society for Testing Materials")  # 34
    # 25 characters of Thai are a phrase of five words, and no evidence: Thai needs as many as English.
    minister = "รัฐมนตรีว่าการกระทรวงมหาดไทย"
    thai = Contamination([("th", 7, f"ใครเป็น{minister}ในรัฐบาลชุดแรกของประเทศ")], length=50)
    assert thai.find(f"เมื่อวานนี้{minister}กล่าวว่า") == []
    assert thai.find(f"คำถาม: ใครเป็น {minister} ในรัฐบาลชุดแรกของประเทศ?")[0][:2] == ("th", 7)


def test_profiles_name_the_source_of_every_threshold() -> None:
    with pytest.raises(ValueError, match="a source for minimum_letters"):
        LengthSection(source={"minimum_characters": "x"}, minimum_characters=1, minimum_letters=2)
    with pytest.raises(ValueError, match="existing thresholds"):
        LengthSection(source={"minimum_chars": "x", "default": "y"})


@pytest.mark.parametrize("folder", ["configs/filters", "configs/filters/help", "tests/fixtures/filters"])
@pytest.mark.parametrize("language", ["ja", "zh", "vi", "id", "th", "ms", "km", "lo", "my", "tl", "en"])
def test_shipped_profiles_load(folder: str, language: str) -> None:
    assert load_profile(language, [folder]).language == language


def test_lists_of_banned_words_beside_the_profile(tmp_path: Path) -> None:
    shipped = shipped_folder("configs") / "filters/en.yaml"
    section = {"source": "C4", "words": ["spam"], "files": ["list.txt"], "maximum_share": 0.1}
    profile = yaml.safe_load(shipped.read_text()) | {"banned_words": section}
    (tmp_path / "en.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(ConfigError, match=r"banned_words\.files") as caught:
        load_profile("en", [str(tmp_path)])
    assert str(tmp_path / "list.txt") in str(caught.value)
    (tmp_path / "list.txt").write_text("# from a list\nbad phrase\n\nspam\n")
    loaded = load_profile("en", [str(tmp_path)]).banned_words
    assert loaded is not None and loaded.words == ["spam", "bad phrase"]
    step = BannedWordFilter(loaded, True, writer())
    # 4 letters of 40 are just allowed: 0.1; 9 ("bad phrase" without its space counts 10) of 40 are not.
    assert outcome(step, "spam " + "x" * 36) == "kept"
    assert outcome(step, "Bad Phrase " + "x" * 31) == "share"


def test_scores_are_binned_by_hand() -> None:
    stats = DocumentStats()
    section = CharacterSection(source="x", minimum_script_share=0.5, maximum_digit_share=0.2)
    step = CharacterFilter(section, ["Han"], stats.writer("characters"))
    # 2 of 5 letters; 3 of 4 letters and 1 of 5 visible characters a digit; 4 of 4 and none.
    assert [outcome(step, text) for text in ("日本abc", "日本語x 7", "日本日本")] == [
        "other_script",
        "kept",
        "kept",
    ]
    assert stats.histograms == {
        "script_share": {"000.40": 1, "000.75": 1, "000.95": 1},
        "digit_share": {"000.20": 1, "000.00": 1},
    }
    lengths = DocumentStats()
    sentences = SentenceSection(source="x", maximum_mean_characters=100)
    step = SentenceFilter(sentences, lengths.writer("sentences"))
    for count in (9, 24, 300):  # with the full stop 10, 25 and 301 characters
        outcome(step, "あ" * count + "。")
    assert lengths.histograms["sentence_characters"] == {"010.00": 1, "020.00": 1, "200.00": 1}
