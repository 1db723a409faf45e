"""Byte-level BPE bases (Llama 3, Qwen, SmolLM, Mistral's tekken): extension by continued merges.

Here a merge is a pair in a list, and the base's pre-tokeniser cuts text first; both are followed as they are.
A piece is written in GPT-2's byte alphabet and may be part of a character.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.hf_tokenizer import read_json
from tsugiki.experiment.text.tokenizer_settings import merge_pair, portable_settings, written_merges
from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.byte_level import ByteLevelEncoder, byte_surface, surfaces_of
from tsugiki.tokenizer.base.merge import RESERVED
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.learning.bpe_trainer import LearnedPiece
from tsugiki.tokenizer.learning.pair_counts import Segments


def count_pretokens(
    texts: Iterable[str], encoder: ByteLevelEncoder, rule: ScriptRule, normalise: Callable[[str], str]
) -> Counter[str]:
    """How often each pre-token with a character of the target scripts occurs."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(encoder.pretokens(normalise(text)))
    wanted: Counter[str] = Counter()
    for pretoken, count in found.items():
        if rule.letters(byte_surface(pretoken).decode("utf-8", errors="ignore")):
            wanted[pretoken] = count
    return wanted


def build_byte_segments(
    base: BaseTokenizer,
    encoder: ByteLevelEncoder,
    runs: Mapping[str, Counter[str]],
    weights: Mapping[str, float],
    damping: float,
) -> tuple[Segments, list[str]]:
    """Pre-tokens as symbols, see :func:`tsugiki.tokenizer.learning.segments.build_segments`.

    Raises:
        DataError: no pre-token at all.
    """
    surfaces = surfaces_of(base)
    symbols: list[int] = []
    counts: list[float] = []
    bounds = [0]
    for counter in runs.values():
        for pretoken, count in counter.items():
            ids = encoder.ids(pretoken)
            if len(ids) > 0:
                symbols += ids
                symbols.append(-1)
                counts += [count**damping] * (len(ids) + 1)
        bounds.append(len(symbols))
    if not symbols:
        raise DataError(
            "the sample holds no text in the scripts of the target languages",
            where="tokenizer.extend.languages",
            fix="check the language codes of corpus.sources",
        )
    segments = Segments(
        np.array(symbols, dtype=np.int32),
        np.array(counts, dtype=np.float32),
        np.array(bounds, dtype=np.int64),
        list(runs),
        dict(weights),
    )
    return segments, surfaces


def byte_neighbours(
    encoder: ByteLevelEncoder, texts: Iterable[str], is_foreign: Callable[[str], bool]
) -> set[str]:
    """Concatenations of neighbouring base tokens in protected text, and whole pre-tokens of several tokens.

    A base with ``ignore_merges`` looks whole pre-tokens up first, so they must not become pieces either.
    """
    words: set[str] = set()
    for text in texts:
        words.update(encoder.pretokens(text))
    forbidden: set[str] = set()
    for word in words:
        if is_foreign(byte_surface(word).decode("utf-8", errors="ignore")):
            continue
        tokens = encoder.surfaces(word)
        if len(tokens) > 1:
            forbidden.add(word)
            forbidden.update(left + right for left, right in pairwise(tokens))
    return forbidden


def merged_document(base: BaseTokenizer, pieces: Sequence[LearnedPiece], final_size: int) -> dict[str, Any]:
    """The base's ``tokenizer.json`` with pieces, their merges and reserved rows appended."""
    assert base.document is not None
    surfaces = surfaces_of(base)
    model = dict(base.document["model"])
    vocabulary = dict(model["vocab"])
    # An added token that the vocabulary lacks would be numbered anew on loading, behind the new pieces.
    vocabulary |= {token["content"]: token["id"] for token in base.document.get("added_tokens") or []}
    merges = [merge_pair(merge) for merge in model["merges"]]
    for piece in pieces:
        merges.append([surfaces[part] for part in piece.parts])
        vocabulary[piece.piece] = len(surfaces)
        surfaces.append(piece.piece)
    number = 0
    while len(surfaces) < final_size:
        name = RESERVED.format(number)
        number += 1
        if name not in vocabulary:
            vocabulary[name] = len(surfaces)
            surfaces.append(name)
    model["vocab"], model["merges"] = vocabulary, written_merges(merges)
    return {**base.document, "model": model}


def write_byte_level(document: Mapping[str, Any], base: BaseTokenizer, output_dir: Path) -> None:
    """Write ``tokenizer.json`` and a ``tokenizer_config.json`` that loads it as it stands."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    (output_dir / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = portable_settings(read_json(base.directory / "tokenizer_config.json") or {})
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (output_dir / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        if (base.directory / name).is_file():
            (output_dir / name).write_bytes((base.directory / name).read_bytes())
