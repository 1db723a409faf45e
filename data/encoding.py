"""Encodes text with a Hugging Face tokenizer, quickly where the tokenizer allows it.

A SentencePiece-style BPE has no pre-tokenizer: the library merges a whole document at once and can
reuse nothing. But no merge ever crosses a place between two characters that stand side by side in
no piece of the vocabulary: the merged piece would contain both. Cutting there is exact. The parts
are short and repeat a lot, so each different one is encoded once and looked up from then on; the
cutting, the lookup and the assembly are numpy over a batch of documents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.hashing import SpanHasher

_SPACE = "▁"
_MAXIMUM_PARTS = 2_000_000
_PAIR_SLOTS = 1 << 22
Ids = NDArray[np.int64]


def _pair_slots(pairs: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Slots of character pairs [n, 2] in a table of ``_PAIR_SLOTS``."""
    mixed = pairs[:, 0] * np.uint32(0x9E3779B1) + pairs[:, 1] * np.uint32(0x85EBCA77)
    return mixed >> np.uint32(32 - 22)


class Encoder(Protocol):
    """Encodes a batch of documents."""

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Ids of all documents one after another, and the number of ids of each."""


class PlainEncoder:
    """The library's own batch encoding.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Ids of all documents one after another, and the number of ids of each."""
        encoded = [item.ids for item in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        flat = [token for ids in encoded for token in ids]
        return np.array(flat, np.int64), lengths


class PartEncoder:
    """Cuts documents where no merge can cross and encodes each different part once.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` that :func:`can_be_cut`.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self._plain = PlainEncoder(tokenizer)
        self._model = Tokenizer(tokenizer.model)  # no normalizer: the text is already normalised
        self._special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        pairs = {
            (ord(left), ord(right)) for piece in self._model.get_vocab() for left, right in pairwise(piece)
        }
        # A table by hash: two pairs with one hash cost a cut, never a wrong one.
        self._pairs = np.zeros(_PAIR_SLOTS, bool)
        self._pairs[_pair_slots(np.array(sorted(pairs), np.uint32))] = True
        self._reset()

    def _reset(self) -> None:
        self._known: dict[int, int] = {}  # hash of a part -> its number
        self._starts = np.empty(0, np.int64)  # by number: its first token in the store,
        self._counts = np.empty(0, np.int64)  # and how many it has
        self._tokens = np.empty(0, np.int64)

    def _store(self, counts: Ids, tokens: Ids) -> None:
        """Add parts; copying the arrays costs less than a batch as long as there is a limit."""
        starts = len(self._tokens) + np.cumsum(counts) - counts
        self._starts = np.concatenate((self._starts, starts))
        self._counts = np.concatenate((self._counts, counts))
        self._tokens = np.concatenate((self._tokens, tokens))

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Ids of all documents one after another, and the number of ids of each."""
        if any(special in text for text in texts for special in self._special):
            return self._plain.encode(texts)
        prepared = [_SPACE + text.replace(" ", _SPACE) if text else "" for text in texts]
        joined = "".join(prepared)
        if not joined:
            return np.empty(0, np.int64), np.zeros(len(texts), np.int64)
        sizes = np.fromiter(map(len, prepared), np.int64, len(prepared))
        ends = np.cumsum(sizes)
        starts = self._cuts(joined, ends - sizes)
        number = self._numbers(joined, starts)  # which part stands there; shape [parts]
        counts = self._counts[number]
        written = np.cumsum(counts)
        total = int(written[-1])
        # Position of every token in the store: its part's first token plus its place in the part.
        place = (
            np.arange(total) - np.repeat(written - counts, counts) + np.repeat(self._starts[number], counts)
        )
        ids = self._tokens[place]
        until = np.concatenate(([0], written))[np.searchsorted(starts, ends)]
        return ids, np.diff(until, prepend=0)

    def _cuts(self, joined: str, documents: Ids) -> Ids:
        """Where parts begin: at the documents, and between characters no piece has side by side."""
        codes = np.frombuffer(joined.encode("utf-32-le"), "<u4")
        begins = np.ones(len(codes), bool)
        np.logical_not(self._pairs[_pair_slots(np.stack((codes[:-1], codes[1:]), axis=1))], out=begins[1:])
        begins[documents[documents < len(codes)]] = True
        return np.flatnonzero(begins)

    def _numbers(self, joined: str, starts: Ids) -> Ids:
        """Number of each part in the store; parts not met before are encoded and added."""
        ends = np.append(starts[1:], len(joined))
        hashes = SpanHasher(joined).spans(starts, ends)
        # np.unique with its extras sorts stably, which is slower; any occurrence of a part will do.
        order = np.argsort(hashes)
        ordered = hashes[order]
        new = np.ones(len(ordered), bool)
        new[1:] = ordered[1:] != ordered[:-1]
        different, where = ordered[new], order[new]
        inverse = np.empty(len(order), np.int64)
        inverse[order] = np.cumsum(new) - 1
        if len(self._known) + len(different) > _MAXIMUM_PARTS:
            self._reset()
        known = self._known
        numbers = [known.get(value, -1) for value in different.tolist()]
        fresh = [place for place, number in enumerate(numbers) if number < 0]
        if fresh:
            parts = [joined[starts[where[place]] : ends[where[place]]] for place in fresh]
            encoded = self._model.encode_batch(parts, add_special_tokens=False)
            for place, number in zip(fresh, range(len(known), len(known) + len(fresh)), strict=True):
                numbers[place] = known[int(different[place])] = number
            self._store(
                np.array([len(item.ids) for item in encoded], np.int64),
                np.array([token for item in encoded for token in item.ids], np.int64),
            )
        return np.array(numbers, np.int64)[inverse]


def can_be_cut(settings: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is BPE that sees the whole text with spaces as ``▁``, and no more.

    The only normalisation may be a ``▁`` in front and one for each space; BPE must not drop merges,
    mark subwords, or join unknown characters.
    """
    model = settings["model"]
    normalizer = settings.get("normalizer") or {}
    expected = [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ]
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not model.get("ignore_merges")
        and bool(model.get("byte_fallback"))
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        and settings.get("pre_tokenizer") is None
        and normalizer.get("type") == "Sequence"
        and normalizer.get("normalizers") == expected
        and not any(token["lstrip"] or token["rstrip"] for token in settings.get("added_tokens", ()))
    )


_ENCODERS: dict[str, Encoder] = {}


def load_encoder(path: Path) -> Encoder:
    """The quickest exact encoder for a ``tokenizer.json``, loaded once per process."""
    key = str(path)
    if key not in _ENCODERS:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(key)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = json.loads(path.read_bytes())
        _ENCODERS[key] = PartEncoder(tokenizer) if can_be_cut(settings) else PlainEncoder(tokenizer)
    return _ENCODERS[key]
