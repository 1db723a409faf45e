"""AutoTokenizer of an exported folder, whose class config.json decides, against the tokenizer of the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizer_material import fixture_texts, mistral_base
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tsugiki.experiment.text.tokenizer_settings import portable_settings
from tsugiki.pretrain.conversion.verify import compare_auto_tokenizer
from tsugiki.pretrain.export import _misread

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture
def llama3_like(tmp_path: Path) -> Path:
    """A byte-level tokenizer that takes up to three digits together."""
    made = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), bytes_only]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*fixture_texts("en")[:5], "123 1234567 " * 50], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(portable_settings({})))
    return tmp_path


@pytest.mark.parametrize(("model_type", "differ"), [("llama", False), ("mistral", False), ("qwen2", True)])
def test_the_class_that_the_model_type_chooses(model_type: str, differ: bool, llama3_like: Path) -> None:
    (llama3_like / "config.json").write_text(json.dumps({"model_type": model_type}))
    found = compare_auto_tokenizer(llama3_like, fixture_texts("ja")[:3])
    assert found["texts"] == 7 and bool(found["differ"]) == differ == ("example" in found)
    told = _misread(found)
    assert (told is not None) == differ and (told is None or "Qwen2Tokenizer" in told)


def test_a_sentencepiece_tokenizer_and_files_that_do_not_fit(tmp_path: Path) -> None:
    mistral_base(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gemma"}')
    assert compare_auto_tokenizer(tmp_path, fixture_texts("th")[:3])["differ"] == 0
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": 5}')
    found = compare_auto_tokenizer(tmp_path, [])
    assert "error" in found and "cannot read the tokenizer" in str(_misread(found))
