"""Code, indentation, tabs, tables, emoji and control characters: tokenizer.json against SentencePiece and transformers."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest
from tokenizer_material import mistral_base, mistral_proto, processor, train_model
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import generate_merges

from tsugiki.experiment.text.hf_tokenizer import (
    load_sentencepiece_proto,
    mergeable,
    merges_of,
    tokenizer_document,
    write_hf_tokenizer,
)
from tsugiki.tokenizer.base.base import load_base
from tsugiki.tokenizer.base.code_sample import code_lines
from tsugiki.tokenizer.base.merge import merge_sentencepiece

LIBRARY = Path(os.__file__).parent
FILES = ("argparse.py", "ast.py", "textwrap.py")
PIECES = ["東京", "京都", "▁▁東京"]
SPACES = ["▁" * length for length in range(2, 12)]


@cache
def library_code() -> list[str]:
    """Whole files and each of their lines."""
    files = [(LIBRARY / name).read_text(encoding="utf-8") for name in FILES]
    return [*files, *(line for text in files for line in text.split("\n"))]


RUNS = [
    f"{a}{mark * length}{b}"
    for length in range(1, 201)
    for mark in " \t\n"
    for a, b in ((("", "x")), ("a", ""))
]
TEXTS = {
    "library": library_code,
    "runs": lambda: RUNS,
    "every gate's": lambda: [*code_lines(), "\n".join(code_lines())],
}


def different(proto, fast: Tokenizer, texts: list[str]) -> list[str]:
    fast.encode_special_tokens = True
    encoded = fast.encode_batch_fast(texts, add_special_tokens=False)
    slow = processor(proto).encode(texts)
    return [text for text, ids, found in zip(texts, slow, encoded, strict=True) if ids != found.ids]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The genuine Mistral model and an extension of it, each as a model and as a ``tokenizer.json``."""
    root = tmp_path_factory.mktemp("code")
    base_dir = mistral_base(root / "base")
    base = load_base(base_dir)
    proto = merge_sentencepiece(base, PIECES, base.size + 8)
    (root / "m.model").write_bytes(proto.SerializeToString())
    write_hf_tokenizer(root / "m.model", root / "extended", inherit_from=base_dir)
    return {
        "Mistral": (base.proto, Tokenizer.from_file(str(base_dir / "tokenizer.json"))),
        "extended": (proto, Tokenizer.from_file(str(root / "extended" / "tokenizer.json"))),
    }


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["Mistral", "extended"])
def test_code_is_cut_as_sentencepiece_cuts_it(tokenizers, name, text):
    assert different(*tokenizers[name], TEXTS[text]()) == []


def test_merges_are_those_of_the_converter_of_transformers():
    proto = mistral_proto()
    parts = mergeable(proto)
    ours = merges_of(((piece, proto.pieces[index].score) for piece, index in parts.items()), parts)
    assert ours == generate_merges(
        parts, [(piece, proto.pieces[index].score) for piece, index in parts.items()]
    )
    assert processor(proto).encode(" " * 40 + "x", out_type=str) == ["▁" * 16, "▁" * 16, "▁" * 8, "▁x"]


@pytest.mark.parametrize(
    "options",
    [
        {
            "user_defined_symbols": [*SPACES, "\n\n", "\n\n\n", "\t\t"],
            "add_dummy_prefix": False,
        },  # as Gemma's
        {"allow_whitespace_only_pieces": True, "split_by_whitespace": False},
        {"remove_extra_whitespaces": True, "split_digits": True},
    ],
    ids=["runs are user-defined", "runs are learned", "spaces are removed"],
)
def test_other_ways_to_treat_spaces(tmp_path, options):
    settings = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    texts = [*library_code()[len(FILES) :: 3], *RUNS, *code_lines(), " \t x \t ", "\n  a\n"]
    texts = [text for text in texts if "▁" not in text]
    model = train_model(library_code()[len(FILES) : 3000], tmp_path / "m.model", **settings | options)
    proto = load_sentencepiece_proto(model)
    assert different(proto, Tokenizer.from_str(json.dumps(tokenizer_document(proto))), texts) == []
