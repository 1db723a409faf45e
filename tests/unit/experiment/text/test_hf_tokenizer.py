"""The Hugging Face tokenizer written from a SentencePiece model, against sentencepiece and transformers."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_material import fixture_texts, mistral_base, mistral_proto, processor, train_model
from tokenizers import Tokenizer, models

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.text.hf_tokenizer import (
    effective_merges,
    mistral_v1_model,
    tokenizer_document,
    write_hf_tokenizer,
)

LANGUAGES = ["en", "ja", "zh", "vi", "th", "km", "my", "lo", "id"]


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return mistral_base(tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def both(mistral):
    slow = sentencepiece.SentencePieceProcessor(model_file=str(mistral / "tokenizer.model"))
    return slow, Tokenizer.from_file(str(mistral / "tokenizer.json"))


def test_same_segmentation_on_real_text(both):
    slow, fast = both
    for language in LANGUAGES:
        for text in fixture_texts(language):
            assert fast.encode(text, add_special_tokens=False).ids == slow.encode(text)


texts = st.text(
    st.one_of(st.characters(codec="utf-8", exclude_characters="\u2581<"), st.just(" ")), max_size=40
)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_same_segmentation_and_round_trip_on_random_unicode(both, text):
    slow, fast = both
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == slow.encode(text)
    assert fast.decode(ids, skip_special_tokens=False) == text


def test_transformers_loads_it_as_it_stands(mistral, both):
    from transformers import AutoTokenizer

    slow, _ = both
    (mistral / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    for text in [" hi", "東京", "hi", "", "a\n b"]:
        assert tokenizer.encode(text, add_special_tokens=False) == slow.encode(text), text
    assert tokenizer.encode("hi") == [1, *slow.encode("hi")]
    assert len(tokenizer) == 32000 and tokenizer.eos_token_id == 2


def test_inheriting_from_itself_changes_nothing(mistral, tmp_path):
    write_hf_tokenizer(mistral_v1_model(), tmp_path, inherit_from=mistral)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (mistral / name).read_bytes()


def test_chat_template_is_inherited_and_class_replaced(mistral, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    mistral_base(base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {"chat_template": "{{ x }}", "tokenizer_class": "LlamaTokenizer", "pad_token": "</s>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    write_hf_tokenizer(mistral_v1_model(), out, inherit_from=base)
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written["chat_template"] == "{{ x }}" and written["pad_token"] == "</s>"
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_normaliser_without_dummy_prefix_and_with_nfkc(tmp_path):
    lines = [line for text in fixture_texts("en") for line in text.split(". ")]
    for options in (
        {"add_dummy_prefix": False, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nfkc"},
    ):
        model = train_model(lines, tmp_path / "m.model", model_type="bpe", **options)
        write_hf_tokenizer(model, tmp_path)
        slow = sentencepiece.SentencePieceProcessor(model_file=str(model))
        fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for line in [*lines, "ｆｕｌｌ  width ①", " lead", "trail  "]:
            assert fast.encode(line, add_special_tokens=False).ids == slow.encode(line), line


def test_unigram_is_refused(tmp_path):
    model = train_model(fixture_texts("en"), tmp_path / "u.model", model_type="unigram", vocab_size=380)
    with pytest.raises(ConfigError, match="Unigram model, which cannot be extended"):
        write_hf_tokenizer(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"<html>not found"]
)
def test_corrupt_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(DataError, match="corrupt SentencePiece model"):
        write_hf_tokenizer(tmp_path / "tokenizer.model", tmp_path / "out")


def test_missing_model(tmp_path):
    with pytest.raises(DataError, match="no SentencePiece model"):
        write_hf_tokenizer(tmp_path / "none.model", tmp_path)


def test_byte_pieces_are_not_spelled_from_text():
    slow = processor(mistral_proto())
    fast = Tokenizer.from_str(json.dumps(tokenizer_document(mistral_proto())))
    assert fast.encode("<0x41>", add_special_tokens=False).ids == slow.encode("<0x41>")


def bpe(vocabulary, merges):
    model = models.BPE({piece: index for index, piece in enumerate(vocabulary)}, [tuple(m) for m in merges])
    return Tokenizer(model)


@pytest.mark.parametrize("seed", range(20))
def test_merges_left_out_never_happen_on_any_short_string(seed):
    choose = random.Random(seed)
    strings = ["".join(letters) for size in range(1, 10) for letters in itertools.product("ab", repeat=size)]
    pieces = choose.sample([s for s in strings if 2 <= len(s) <= 6], 25)
    vocabulary = ["a", "b", *pieces]
    merges = [(p[:cut], p[cut:]) for p in pieces for cut in range(1, len(p))]
    merges = [(left, right) for left, right in merges if left in vocabulary and right in vocabulary]
    choose.shuffle(merges)
    kept = effective_merges(merges)
    assert len(kept) < len(merges)
    full, fewer = bpe(vocabulary, merges), bpe(vocabulary, kept)
    for text in strings:
        assert fewer.encode(text).ids == full.encode(text).ids, text
    # One merge for each piece that a text can give, and no more.
    assert len(kept) == sum(len(full.encode(piece).ids) == 1 for piece in pieces)


@pytest.fixture(scope="module")
def extended(mistral, tmp_path_factory):
    """Added pieces; the extended model, its ``tokenizer.json``, and one with the merges of every split."""
    from tsugiki.tokenizer.base.base import load_base
    from tsugiki.tokenizer.base.merge import merge_sentencepiece, select_reachable

    base, out = load_base(mistral), tmp_path_factory.mktemp("extended")
    text = [t.replace(" ", "▁") for language in ("th", "ja", "vi", "km") for t in fixture_texts(language)[:4]]
    counts = Counter(t[at : at + size] for t in text for size in range(1, 9) for at in range(len(t) - size))
    pieces = select_reachable(base, [piece for piece, _ in counts.most_common(3000)], 1000)
    proto = merge_sentencepiece(base, pieces, base.size + len(pieces))
    (out / "m.model").write_bytes(proto.SerializeToString())
    write_hf_tokenizer(out / "m.model", out, inherit_from=mistral)
    full = Tokenizer.from_str(json.dumps(tokenizer_document(proto)))
    return pieces, processor(proto), Tokenizer.from_file(str(out / "tokenizer.json")), full


@pytest.mark.slow
def test_an_extended_tokenizer_has_one_merge_for_each_piece(extended):
    pieces, _, fast, full = extended
    merges, every = (json.loads(item.to_str())["model"]["merges"] for item in (fast, full))
    joined = {"".join(merge) for merge in merges}
    assert len(joined) == len(merges) < len(every) / 1.8
    assert {piece for piece in pieces if len(piece) > 1} <= joined


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_an_extended_tokenizer_segments_as_with_every_merge(extended, data):
    pieces, slow, fast, full = extended
    part = st.one_of(st.sampled_from(pieces), st.integers(259, 31999).map(slow.id_to_piece), texts)
    text = "".join(data.draw(st.lists(part, max_size=12))).replace("▁", " ")
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == full.encode(text, add_special_tokens=False).ids
    if "<" not in text:
        assert ids == slow.encode(text)


@pytest.mark.slow
def test_added_tokens_of_the_base_keep_their_ids_when_the_vocabulary_grows(tmp_path):
    from tsugiki.tokenizer.base.base import load_base
    from tsugiki.tokenizer.base.merge import merge_sentencepiece

    base_dir, out = mistral_base(tmp_path / "base"), tmp_path / "out"
    base_tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    base_tokenizer.add_special_tokens(["<|im_start|>"])
    base_tokenizer.save(str(base_dir / "tokenizer.json"))
    base = load_base(base_dir)
    assert base.size == 32001
    proto = merge_sentencepiece(base, ["東京"], 32008)
    (tmp_path / "m.model").write_bytes(proto.SerializeToString())
    write_hf_tokenizer(tmp_path / "m.model", out, inherit_from=base_dir)
    fast = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert fast.token_to_id("<|im_start|>") == 32000
    assert fast.encode("東京", add_special_tokens=False).ids[-1] == 32001
    assert sorted(fast.get_vocab(with_added_tokens=True).values()) == list(range(32008))
