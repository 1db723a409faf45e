"""Byte-level BPE bases, on a small one trained here."""

from __future__ import annotations

import json

import pytest
from tokenizer_material import fixture_texts, write_corpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from experiment.stage import StageContext
from tokenizer.byte_level import whole_characters
from tokenizer.config import TokenizerConfig
from tokenizer.stage import run

LANGUAGES = ("km", "vi", "ja")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("byte")
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(fixture_texts("en"), trainer)
    base.add_special_tokens(["<|late|>"])
    (root / "base").mkdir()
    base.save(str(root / "base" / "tokenizer.json"))
    texts = {language: fixture_texts(language) for language in (*LANGUAGES, "en")}
    write_corpus(root / "corpus", texts)
    (root / "out").mkdir()
    config = TokenizerConfig.model_validate(
        {
            "extend": {"size": 200, "languages": dict.fromkeys(LANGUAGES, 1.0), "minimum_count": 2},
            "report_bytes_per_language": 3000,
        }
    )
    result = run(
        config, {"base": root / "base", "corpus": root / "corpus"}, root / "out", StageContext(workers=1)
    )
    return root, result


def test_every_gate_and_every_language(directories):
    root, result = directories
    old = Tokenizer.from_file(str(root / "base" / "tokenizer.json"))
    new = Tokenizer.from_file(str(root / "out" / "tokenizer.json"))
    assert result.counts["base_vocabulary"] == 601 and result.counts["vocabulary_size"] == 896
    for language in LANGUAGES:
        for text in fixture_texts(language)[-3:]:
            ids = new.encode(text).ids
            assert len(ids) < len(old.encode(text).ids)
            assert new.decode(ids, skip_special_tokens=False) == text
    for text in fixture_texts("en"):
        assert new.encode(text).ids == old.encode(text).ids
    assert new.token_to_id("<|late|>") == 600, "added tokens keep their ids, pieces come after them"
    gates = json.loads((root / "out" / "report.json").read_text())["gates"]
    assert all(gate["passed"] for gate in gates)


def test_base_ids_spell_the_piece(directories):
    root, _ = directories
    vocabulary = Tokenizer.from_file(str(root / "base" / "tokenizer.json")).get_vocab()
    surfaces = {index: surface for surface, index in vocabulary.items()}
    rows = (root / "out" / "pieces.tsv").read_text(encoding="utf-8").splitlines()[1:]
    real = [row.split("\t") for row in rows if not row.endswith("\t")]
    assert len(real) == 200
    for _, piece, _, ids in real:
        assert "".join(surfaces[int(index)] for index in ids.split()) == piece


def test_whole_characters():
    data = "កខ".encode()
    assert whole_characters(data[1:]) == "ខ"
    assert whole_characters(data[:-1]) == "ក"
    assert whole_characters(data[1:3]) == ""
