"""What pieces may consist of, how training text is normalised, and what is kept out of English."""

from __future__ import annotations

import unicodedata

import pytest

from tsugiki.tokenizer.base.sample import normalise
from tsugiki.tokenizer.base.scripts import ScriptRule, everyday_characters, scripts_of
from tsugiki.tokenizer.learning.candidates import LatinGuard


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ﾊﾞｽ Ａｂ１", "バス Ab1"),
        ("e\u0301", "é"),
        ("你好，世界！", "你好，世界！"),  # full-width punctuation is how Chinese is written
        ("\u3000本日", "\u3000本日"),  # the tokenizer meets the ideographic space as it is
        ("ทำ", "ทำ"),  # NFKC would take U+0E33 apart, which no Thai text does
        ("ຳ ໜ", "ຳ ໜ"),
        ("င\u103a\u1037", "င\u103a\u1037"),  # NFC would put the dot before the asat
    ],
)
def test_training_text_stays_as_it_is_written(text, expected):
    assert normalise(text, "nfkc") == expected
    assert normalise(text, "none") == text


def test_pieces_of_chinese_hold_its_punctuation():
    rule = ScriptRule(scripts_of("zh"))
    assert rule.runs("他说：“你好，世界……”2024年，OK") == ["他说：“你好，世界……”", "年，"]
    assert rule.allows("……”。") and not rule.allows("……") and not rule.allows("Ａ")
    assert rule.is_foreign("a，b") and rule.is_foreign("a。") and not rule.is_foreign("“a” … 12 — b")


def test_phrases_have_words_on_both_sides_of_a_space():
    rule = ScriptRule(scripts_of("vi"), phrases=True)
    assert rule.runs("Nó có thể, 3 người") == ["Nó có thể", " người"]
    assert rule.allows("▁có▁thể") and rule.allows("có▁thể")
    assert not rule.allows("▁có▁") and not rule.allows("▁▁có") and not rule.allows("▁có▁3")
    assert not ScriptRule(scripts_of("vi")).allows("▁có▁thể")


def test_vietnamese_names_are_told_from_french_ones():
    rule = ScriptRule(scripts_of("vi"), letters=r"\u01B0\u1EA0-\u1EF9")
    assert rule.is_foreign("Nguyễn") and rule.is_foreign("thư") and not rule.is_foreign("Café Müller")


guard = LatinGuard(
    protected=["data", "sanatorium", "tin", "Kandinsky", "no"],
    common=["yang", "tidak", "di", "dapat", "bukan"],
)


@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        ("▁yang", None),
        ("▁Yang", None),  # written in small letters too: the beginning of a sentence
        ("andin", "protected"),  # inside Kandinsky
        ("▁Kan", "name"),
        ("▁sana", None),  # begins a protected word, whose neighbours are tested exactly
        ("kan", None),  # in Kandinsky with a capital only
        ("▁Tin", "name"),  # no target language writes it in small letters
        ("▁Jakarta", "name"),
        ("▁TIDAK", "name"),
        ("Yang", "name"),
        ("brahim", "name"),  # inside names only
        ("▁di▁dapat", None),
        ("▁data▁tin", "protected"),  # both words are protected
        ("▁data▁yang", None),
        ("▁no▁di", None),
        ("▁yang▁Jak", "name"),
        ("▁data▁sana", "protected"),  # "sana" begins a protected word
        ("▁data▁natorium", None),  # but no word begins with "natorium"
    ],
)
def test_what_could_turn_up_in_unseen_english(piece, reason):
    assert guard(piece) == reason


def test_zero_width_space_may_begin_a_piece():
    rule = ScriptRule(scripts_of("km"))
    assert rule.runs("ok ភ្នំ\u200bពេញ ១២") == [" ភ្នំ\u200bពេញ", " ១២"]
    assert rule.allows("\u200bពេញ") and not rule.allows("ភ្នំ\u200bពេញ") and not rule.allows("ពេញ\u200b")
    assert not rule.allows("\u200b") and not rule.allows("\u200b\u200b") and not rule.is_foreign("a\u200bb")
    assert not ScriptRule(scripts_of("id")).allows("\u200bada")
    assert ScriptRule(scripts_of("fa")).allows("می\u200cخواهم")


def test_digits_of_a_script_stay_single():
    rule = ScriptRule(scripts_of("km"))
    assert rule.allows("១") and rule.is_foreign("១")
    assert not rule.allows("១២") and not rule.allows("ភ១") and not rule.allows("▁១")


@pytest.mark.parametrize(
    ("language", "count", "frequent"),
    [("zh", 3755, "猪杰癌"), ("ja", 2965, "猪傑癌"), ("ko", 2350, "한국어"), ("zh-TW", 5338, "豬傑癌")],
)
def test_everyday_characters_are_level_1_of_the_standard(language, count, frequent):
    found = everyday_characters(language, scripts_of(language))
    written = [c for c in found if unicodedata.name(c).startswith(("CJK UNIFIED", "HANGUL SYLLABLE"))]
    assert len(set(written)) == len(written) == count and set(frequent) <= set(found)


def test_everyday_characters_of_an_alphabet_are_its_block():
    block = {chr(code) for code in range(0x1000, 0x10A0)}
    assert set(everyday_characters("my", scripts_of("my"))) == {
        c for c in block if unicodedata.category(c)[0] in "LM" or unicodedata.category(c) == "Nd"
    }
    assert "Ế" in everyday_characters("vi", scripts_of("vi"))
    assert everyday_characters("id", scripts_of("id")) == []
