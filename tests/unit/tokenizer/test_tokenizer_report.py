"""The efficiency report: every measure against a count by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import sentencepiece
from tokenizer_material import fixture_texts, mistral_base

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model
from tsugiki.tokenizer.base.words import PACKAGES, keep_everything, pretokeniser, word_splitter
from tsugiki.tokenizer.learning.cost import MISTRAL_7B, relative_cost, shape_of
from tsugiki.tokenizer.measure.efficiency import AnyTokenizer, measure, read_lines, word_spans
from tsugiki.tokenizer.report import run_report


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return mistral_base(tmp_path_factory.mktemp("base"))


def test_counts_agree_with_sentencepiece(base):
    slow = sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    lines = fixture_texts("km")[:5]
    found = measure(AnyTokenizer("base", base), lines, "km")
    ids = [slow.encode(line) for line in lines]
    assert found.metrics["tokens"] == sum(map(len, ids))
    assert found.metrics["characters"] == sum(map(len, lines))
    assert found.metrics["bytes"] == sum(len(line.encode()) for line in lines)
    assert found.tokens_per_line.tolist() == [len(item) for item in ids]
    in_bytes = sum(slow.is_byte(index) for item in ids for index in item)
    assert found.metrics["byte_fallback_rate"] == pytest.approx(in_bytes / found.metrics["tokens"])
    assert found.usage.sum() == found.metrics["tokens"]


def test_words_by_hand(base):
    # ▁The ▁light house ▁w arns ▁ships: pieces of the genuine model are asked for, words are counted here.
    line = "The lighthouse warns ships."
    tokenizer = AnyTokenizer("base", base)
    pieces = [tokenizer.surfaces[index] for index in tokenizer.ids([line])[0].tolist()]
    words = " ".join(pieces).replace("▁", "\n").split("\n")[1:]
    cut = sum(len(word.split()) > 1 + word.rstrip().endswith(".") for word in words)
    found = measure(tokenizer, [line], "en").metrics
    assert found["words_sampled"] == 4
    assert found["fertility"] == len(pieces) / 4
    assert found["continued_words"] == cut / 4
    assert found["single_token_retention"] == 1 - cut / 4
    several = measure(tokenizer, [line, "...", "", line], "en").metrics
    assert several["words_sampled"] == 8
    assert several["fertility"] == found["fertility"]
    assert several["continued_words"] == found["continued_words"]


def test_word_spans_skip_punctuation():
    line = "a, b  c"
    assert word_spans(line, word_splitter("en").split(line)).tolist() == [[0, 1], [3, 4], [6, 7]]


def test_a_splitter_that_swallows_characters_is_mended():
    split = keep_everything(lambda text: text.split())
    for text in ["  a b  c ", "abc", " ", "", "x\n y"]:
        assert "".join(split(text)) == text
    assert split(" a b  c ") == [" a", " b", "  c "]
    # Words of their own, too, go to the word that they stand before.
    assert keep_everything(lambda text: ["ក", "\u200b", "ខ", " ", "គ"])("ក\u200bខ គ") == [
        "ក",
        "\u200bខ",
        " គ",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mecab", "東京 に 行き ます"),
        ("jieba", "我 爱 北京 天安门"),
        ("thai", "ฉัน ไป โรงเรียน"),
        ("khmer", "ខ្ញុំ ទៅ សាលារៀន"),
        ("lao", "ຂ້ອຍ ໄປ ໂຮງຮຽນ"),
        ("burmese", "ကျွန်တော် ကျောင်း သွား တယ်"),
    ],
)
def test_word_segmenters_find_the_words_of_a_plain_sentence(name, words):
    for package in PACKAGES[name]:
        pytest.importorskip(package)
    assert keep_everything(pretokeniser(name))(words.replace(" ", "")) == words.split()


def test_cost_by_hand():
    # 1 layer, hidden 4, 2 heads of 2, 1 kv head, ffn 8: q, o 2*4*4, k, v 2*4*2, gate, up, down 3*4*8.
    config = {
        "model_type": "llama",
        "vocab_size": 10,
        "hidden_size": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "tie_word_embeddings": True,
    }
    shape = shape_of(config, "config.json")
    assert shape.body_parameters == 32 + 16 + 96
    assert shape.parameters(10) == 144 + 40
    assert relative_cost(shape, 50, 20, 100, 10) == pytest.approx(0.5 * (144 + 80) / (144 + 40))
    assert MISTRAL_7B.parameters(32000) == 7_241_732_096
    # Gemma ties its matrices, and has heads of 256, though its config.json does not say so.
    gemma = shape_of(
        {**config, "model_type": "gemma", "num_key_value_heads": 1, "tie_word_embeddings": None}, ""
    )
    assert gemma.tied and gemma.body_parameters == 2 * 4 * 512 + 2 * 4 * 256 + 96
    with pytest.raises(ConfigError, match="no such model family"):
        shape_of({**config, "model_type": "gpt2"}, "config.json")


@pytest.mark.slow
def test_report_of_several_tokenizers(base, tmp_path):
    texts = {}
    for language in ("en", "ja"):
        texts[language] = [tmp_path / f"{language}.txt"]
        texts[language][0].write_text("\n".join(fixture_texts(language)[:4]), encoding="utf-8")
    out = tmp_path / "out"
    found = run_report(
        {"dir": base, "file": base / "tokenizer.json", "model": mistral_v1_model()},
        texts,
        out,
        parallel={language: paths[0] for language, paths in texts.items()},
    )
    assert json.loads((out / "report.json").read_text())["tokenizers"] == found["tokenizers"]
    rows = found["tokenizers"]
    assert rows["dir"] == rows["file"] == rows["model"]
    assert rows["dir"]["en"]["parity"] == 1 and rows["dir"]["ja"]["parity"] > 1
    assert rows["dir"]["ja"]["relative_to_reference"] == 1
    page = (out / "report.html").read_text()
    assert 'src="http' not in page and not re.search('href="[^#]', page) and page.count("<figure>") >= 3
    assert (out / "report.csv").read_text().count("\n") == 1 + 3 * 2
    assert "| ja | model |" in (out / "report.md").read_text()


def test_hostile_text_is_shown_and_not_obeyed(base, tmp_path):
    hostile = "<script>alert('x')</script>"
    document = json.loads((base / "tokenizer.json").read_text())
    document["model"]["vocab"]["<img"] = 32000
    document["model"]["merges"].append("< img")
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "t.txt").write_text("<img <img src=x>\nplain words\n", encoding="utf-8")
    tokenizers = {hostile: base, f"new {hostile}": tmp_path / "tokenizer.json"}
    run_report(
        tokenizers, {"en": [tmp_path / "t.txt"], hostile: [tmp_path / "t.txt"]}, tmp_path, title=hostile
    )
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") >= 20 and "<code>&lt;img</code>" in page


@pytest.mark.slow
def test_unused_and_longest_added_pieces(base, tmp_path):
    document = json.loads((base / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary |= {"東京": 32000, "京都": 32001, "<reserved_0>": 32002}
    document["model"]["merges"] += ["東 京", "京 都"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "t.txt").write_text("東京 東京\n", encoding="utf-8")
    found = run_report(
        {"a": base, "b": tmp_path / "tokenizer.json"}, {"ja": [tmp_path / "t.txt"]}, tmp_path / "o"
    )
    added = found["added_pieces"]["b"]
    assert (added["added"], added["reserved"], added["unused"], added["rare"]) == (2, 1, 1, 1)
    assert added["unused_examples"] == ["京都"]
    before = found["tokenizers"]["a"]["ja"]["tokens"]
    assert found["tokenizers"]["b"]["ja"]["tokens"] == before - 2


def test_bad_input(base, tmp_path):
    (tmp_path / "sjis.txt").write_bytes("日本語".encode("shift_jis"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_lines([tmp_path / "sjis.txt"])
    with pytest.raises(DataError, match="no tokenizer here"):
        AnyTokenizer("x", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="nothing to measure"):
        run_report({}, {}, tmp_path)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="empty"):
        run_report({"x": base}, {"en": [tmp_path / "empty.txt"]}, tmp_path)
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "one.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="same number of lines"):
        files = {"en": tmp_path / "one.txt", "ja": tmp_path / "two.txt"}
        run_report({"x": base}, {"en": [tmp_path / "one.txt"]}, tmp_path, parallel=files)
    assert np.all(AnyTokenizer("x", base).is_byte[3:259])
