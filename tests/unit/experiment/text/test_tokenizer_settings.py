"""What releases 4 and 5 of transformers read beside the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from tokenizer_material import mistral_base
from tokenizers import Tokenizer

from tsugiki.experiment.text.tokenizer_settings import (
    FAST_CLASS,
    merge_pair,
    not_for_strings,
    portable_settings,
    written_merges,
)


@pytest.mark.parametrize(
    "name",
    [
        "LlamaTokenizer",
        "LlamaTokenizerFast",
        "GemmaTokenizer",
        "CodeLlamaTokenizer",
        "GPT2Tokenizer",
        "Qwen2Tokenizer",
    ],
)
def test_padding_side_and_inputs_are_those_of_the_class_that_is_replaced(name: str) -> None:
    written = portable_settings({"tokenizer_class": name, "auto_map": {}, "pad_token": "x"})
    replaced = getattr(transformers, name)
    assert written["padding_side"] == replaced.padding_side
    assert written["model_input_names"] == replaced.model_input_names == ["input_ids", "attention_mask"]
    assert (
        written["tokenizer_class"] == FAST_CLASS and "auto_map" not in written and written["pad_token"] == "x"
    )


def test_what_the_source_says_counts() -> None:
    said = {"tokenizer_class": "LlamaTokenizer", "padding_side": "right", "model_input_names": ["input_ids"]}
    assert portable_settings(said) == said | {"tokenizer_class": FAST_CLASS}


def test_a_source_that_says_nothing() -> None:
    assert portable_settings({})["padding_side"] == "right"
    assert portable_settings({}, source_class="LlamaTokenizer")["padding_side"] == "left"


@pytest.mark.parametrize("pairs", [[("a", "b"), ("▁", "c")], [("a", "b c"), ("d", "e")], [("#version", "x")]])
def test_merges_come_back_as_they_were(pairs: list[tuple[str, str]]) -> None:
    written = written_merges(pairs)
    assert [tuple(merge_pair(merge)) for merge in written] == pairs
    assert all(isinstance(merge, str) for merge in written) != any(map(not_for_strings, pairs))


def test_merges_of_a_sentencepiece_model_are_strings(tmp_path: Path) -> None:
    document = json.loads((mistral_base(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    merges = document["model"]["merges"]
    assert all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)
    read = json.loads(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str())["model"]["merges"]
    assert [merge.split(" ") for merge in merges] == read
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (settings["padding_side"], settings["model_input_names"]) == (
        "left",
        ["input_ids", "attention_mask"],
    )
