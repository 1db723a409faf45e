"""Byte-level BPE bases: the byte alphabet, and the parts of such a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.tokenizer.base.base import BaseTokenizer

_SPECIAL_SURFACE = "\0"


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte, inverted: character -> byte value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(value): value for value in printable}
    others = [value for value in range(256) if value not in set(printable)]
    return alphabet | {chr(256 + offset): value for offset, value in enumerate(others)}


_ALPHABET = byte_alphabet()


def byte_surface(surface: str) -> bytes:
    """The bytes of a byte-level token; other text as UTF-8."""
    try:
        return bytes(_ALPHABET[character] for character in surface)
    except KeyError:
        return surface.encode()


def whole_characters(data: bytes) -> str:
    """The complete characters in a piece of UTF-8, its broken ends left out."""
    start = 0
    while start < len(data) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:].decode("utf-8", errors="ignore")


class ByteLevelEncoder:
    """The parts of a byte-level tokenizer: pre-tokeniser and BPE model.

    Args:
        document: content of ``tokenizer.json``.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_str(json.dumps(document))
        self._model: Any = self.tokenizer.model

    def pretokens(self, text: str) -> list[str]:
        """Pre-tokens of a text in the byte alphabet."""
        if self.tokenizer.normalizer is not None:
            text = self.tokenizer.normalizer.normalize_str(text)
        return [word for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    def ids(self, pretoken: str) -> list[int]:
        """Base token ids of a pre-token."""
        return [token.id for token in self._model.tokenize(pretoken)]

    def surfaces(self, pretoken: str) -> list[str]:
        """Base token surfaces of a pre-token."""
        return [token.value for token in self._model.tokenize(pretoken)]

    def text_surfaces(self, texts: Sequence[str]) -> list[list[str]]:
        """Base token surfaces of each text."""
        return [item.tokens for item in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def surfaces_of(base: BaseTokenizer) -> list[str]:
    """Surface of every base id; added tokens get one that no piece contains."""
    assert base.document is not None
    surfaces = [f"{_SPECIAL_SURFACE}{index}" for index in range(base.size)]
    for surface, index in base.document["model"]["vocab"].items():
        surfaces[index] = surface
    return surfaces
