"""Samples and requests of the vocabulary stage that cannot be met: each says what is wrong."""

from __future__ import annotations

import tracemalloc

import pytest
import zstandard
from tokenizer_material import fixture_texts, mistral_base, train_model, write_corpus

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.run.stage import StageContext
from tsugiki.tokenizer.base.sample import draw
from tsugiki.tokenizer.config import ExtendConfig, TokenizerConfig
from tsugiki.tokenizer.extend import run
from tsugiki.tokenizer.learning.sentencepiece_trainer import train_candidates


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return mistral_base(tmp_path_factory.mktemp("base") / "hf")


def attempt(base, corpus, out, **settings):
    config = {"size": 50, "languages": {"ja": 1.0}, "minimum_count": 2, **settings}
    out.mkdir(exist_ok=True)
    return run(
        TokenizerConfig.model_validate({"extend": config, "report_bytes_per_language": 2000}),
        {"base": base, "corpus": corpus},
        out,
        StageContext(workers=1),
    )


def test_byte_budget_is_kept_while_streaming(tmp_path):
    # 40 MB of text in 400 documents; a budget of 300 kB may hold one document and the decompressor's buffers.
    document = "日本語の文章。" * 4762
    corpus = write_corpus(tmp_path, {"ja": [document] * 400}, heldout=1)
    index = CorpusIndex.load(corpus)
    tracemalloc.start()
    sizes = [len(text.encode()) for text in draw(index, corpus, "ja", 300_000, "train", 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 250_000 < sum(sizes) <= 300_000
    assert peak < 8_000_000, "the corpus is 40 MB"


def test_a_document_larger_than_the_budget_is_cut_between_characters(tmp_path):
    corpus = write_corpus(tmp_path, {"ja": ["あ" * 1000, "い"]}, heldout=1)
    (text,) = draw(CorpusIndex.load(corpus), corpus, "ja", 1000, "train", 1)
    assert text == "あ" * 333


def test_empty_sample(base, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": ["", ""], "en": fixture_texts("en")}, heldout=1)
    with pytest.raises(DataError, match="no training text in ja"):
        attempt(base, corpus, tmp_path / "out")


def test_sample_without_letters(base, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": ["12 34\n56"] * 5, "en": fixture_texts("en")})
    with pytest.raises(DataError, match="is in another language"):
        attempt(base, corpus, tmp_path / "out")


def test_sample_without_repetition(base, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": ["いろはにほへと"] * 5, "en": fixture_texts("en")})
    with pytest.raises(DataError, match="no piece is left to add"):
        attempt(base, corpus, tmp_path / "out", minimum_count=1000)


@pytest.mark.slow
def test_a_corpus_of_one_language_needs_no_english(base, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": fixture_texts("ja")})
    result = attempt(base, corpus, tmp_path / "out", protect=[])
    assert result.counts["added_pieces"] == 50


def test_corpus_that_is_not_utf8(base, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": fixture_texts("ja"), "en": fixture_texts("en")})
    shard = corpus / "src-ja" / "train.jsonl.zst"
    record = b'{"id": "x", "text": "' + "日本語".encode("shift_jis") + b'"}\n'
    shard.write_bytes(zstandard.ZstdCompressor().compress(record))
    with pytest.raises(DataError, match=r"unreadable shard[\s\S]*line 1"):
        attempt(base, corpus, tmp_path / "out")


def test_size_below_the_required_characters():
    lines = (chr(0x4E00 + index) * 3 for index in range(1000))
    with pytest.raises(ConfigError, match="size is smaller than the characters"):
        train_candidates(lines, 300, {}, threads=1, maximum_piece_characters=8)


def test_corrupt_sentencepiece_model(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": fixture_texts("ja")})
    (tmp_path / "base").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 493443\n"
    (tmp_path / "base" / "tokenizer.model").write_text(pointer)
    with pytest.raises(DataError, match="corrupt SentencePiece model"):
        attempt(tmp_path / "base", corpus, tmp_path / "out")


def test_unigram_json_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": fixture_texts("ja")})
    (tmp_path / "base").mkdir()
    document = '{"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}'
    (tmp_path / "base" / "tokenizer.json").write_text(document)
    with pytest.raises(ConfigError, match="Unigram model, which cannot be extended"):
        attempt(tmp_path / "base", corpus, tmp_path / "out")


def test_sentencepiece_method_takes_its_base(tmp_path):
    # A BPE base of another make than Mistral's: the usual recipe, and its gates.
    (tmp_path / "base").mkdir()
    train_model(fixture_texts("en"), tmp_path / "base" / "tokenizer.model", model_type="bpe")
    corpus = write_corpus(tmp_path / "corpus", {"km": fixture_texts("km"), "en": fixture_texts("en")})
    settings = {"languages": {"km": 1.0}, "method": "sentencepiece"}
    result = attempt(tmp_path / "base", corpus, tmp_path / "out", **settings)
    assert result.counts["added_pieces"] == 50
    assert result.metrics["tokenizer/tokens_relative_to_base/km"] < 0.9


def test_languages_are_named_where_they_must_be():
    for field, value in (("quotas", {"zh": 3}), ("pretokenise", {"zh": "jieba"}), ("phrases", ["zh"])):
        with pytest.raises(ValueError, match=f"{field} names zh"):
            ExtendConfig.model_validate({"languages": {"ja": 1.0}, field: value})
