"""Encodes text with a Hugging Face tokenizer, quickly where the tokenizer allows it.

A SentencePiece-style BPE has no pre-tokenizer: the library merges a whole document at once and can
reuse nothing. But no merge ever crosses a place between two characters that stand side by side in
no piece of the vocabulary: the merged piece would contain both. Cutting there is exact. The parts
are short and repeat a lot, so each different one is encoded once and looked up from then on; the
cutting, the lookup and the assembly are numpy over a batch of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tsugiki.experiment.text.rolling_hash import Hashes, SpanHasher
from tsugiki.experiment.text.tokenizer_files import open_tokenizer

_SPACE = "▁"
_SEPARATOR = "\x00"
_PARTS_PER_TEXT = 64
_MAXIMUM_PARTS = 2_000_000
_PART_SLOT_BITS = 22
_PART_SLOTS = 1 << _PART_SLOT_BITS
_PAIR_SLOTS = 1 << 22
Ids = NDArray[np.int64]


def _pair_slots(pairs: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Slots of character pairs [n, 2] in a table of ``_PAIR_SLOTS``."""
    mixed = pairs[:, 0] * np.uint32(0x9E3779B1) + pairs[:, 1] * np.uint32(0x85EBCA77)
    return mixed >> np.uint32(32 - 22)


def _part_slots(hashes: Hashes) -> NDArray[np.uint64]:
    return hashes >> np.uint64(64 - _PART_SLOT_BITS)


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
        batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        encoded = [item.ids for item in batch]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        flat = [token for ids in encoded for token in ids]
        return np.array(flat, np.int64), lengths


class CachedBPE:
    """Cuts documents where no merge can cross and encodes each different part once.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` that :func:`can_be_cut`.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self._plain = PlainEncoder(tokenizer)
        self._prefix = tokenizer.normalizer.normalize_str("a")[:-1]
        self._model = Tokenizer(tokenizer.model)  # no normalizer: the text is already normalised
        # Added tokens that are found in a text before the model sees it.
        self._special = [
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if not (token.special and tokenizer.encode_special_tokens)
        ]
        # No other character gives this byte, and no piece holds it: see can_be_cut.
        self._special.append(_SEPARATOR)
        self._separator_id = self._model.token_to_id("<0x00>")
        pairs = {
            (ord(left), ord(right)) for piece in self._model.get_vocab() for left, right in pairwise(piece)
        }
        # A table by hash: two pairs with one hash cost a cut, never a wrong one.
        self._pairs = np.zeros(_PAIR_SLOTS, bool)
        self._pairs[_pair_slots(np.array(sorted(pairs), np.uint32))] = True
        self._reset()

    def _reset(self) -> None:
        self._known: dict[int, int] = {}  # hash of a part -> its number
        # The same as a table of slots, for numpy. An empty slot holds a hash that belongs elsewhere.
        slots = np.arange(_PART_SLOTS, dtype=np.uint64)
        self._slot_hash = ~slots << np.uint64(64 - _PART_SLOT_BITS)
        self._slot_number = np.zeros(_PART_SLOTS, np.int32)
        self._starts = np.empty(0, np.int64)  # by number: its first token in the store,
        self._counts = np.empty(0, np.int32)  # and how many it has
        self._tokens = np.empty(0, np.int32)

    def _store(self, hashes: Hashes, counts: Ids, tokens: Ids) -> None:
        """Add parts; copying the arrays costs less than a batch as long as there is a limit."""
        numbers = np.arange(len(self._counts), len(self._counts) + len(hashes), dtype=np.int32)
        self._known.update(zip(hashes.tolist(), numbers.tolist(), strict=True))
        slots = _part_slots(hashes)
        # Who comes first keeps the slot: frequent parts come early. The others stay in the dictionary.
        free = _part_slots(self._slot_hash[slots]) != slots
        slots, first = np.unique(slots[free], return_index=True)
        self._slot_hash[slots] = hashes[free][first]
        self._slot_number[slots] = numbers[free][first]
        starts = len(self._tokens) + np.cumsum(counts) - counts
        self._starts = np.concatenate((self._starts, starts))
        self._counts = np.concatenate((self._counts, counts.astype(np.int32)))
        self._tokens = np.concatenate((self._tokens, tokens.astype(np.int32)))

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Ids of all documents one after another, and the number of ids of each."""
        together = "".join(texts)
        found = [special for special in self._special if special in together]
        if not found:
            return self._cut_up(texts)
        results = [
            (self._plain.encode if special else self._cut_up)(list(group))
            for special, group in groupby(texts, lambda text: any(item in text for item in found))
        ]
        return np.concatenate([ids for ids, _ in results]), np.concatenate([size for _, size in results])

    def _cut_up(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """:meth:`encode` for texts without special tokens."""
        prepared = [self._prefix + text.replace(" ", _SPACE) if text else "" for text in texts]
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

    def _numbers(self, joined: str, starts: Ids) -> NDArray[np.int32]:
        """Number of each part in the store; parts not met before are encoded and added."""
        ends = np.append(starts[1:], len(joined))
        hashes = SpanHasher(joined).spans(starts, ends)
        if len(self._known) + len(hashes) > _MAXIMUM_PARTS:
            self._reset()
        slots = _part_slots(hashes)
        numbers = self._slot_number[slots]
        rest = np.flatnonzero(self._slot_hash[slots] != hashes)
        if not len(rest):
            return numbers
        different, where, inverse = np.unique(hashes[rest], return_index=True, return_inverse=True)
        known = self._known
        found = np.array([known.get(value, -1) for value in different.tolist()], np.int32)
        fresh = np.flatnonzero(found < 0)
        if len(fresh):
            # In the order of the text, so that frequent parts come to their slots first.
            fresh = fresh[np.argsort(where[fresh])]
            place = rest[where[fresh]]
            parts = [joined[start:end] for start, end in zip(starts[place], ends[place], strict=True)]
            found[fresh] = len(known) + np.arange(len(fresh))
            self._store(different[fresh], *self._encoded(parts))
        numbers[rest] = found[inverse]
        return numbers

    def _encoded(self, parts: list[str]) -> tuple[Ids, Ids]:
        """Tokens of each part, and all of them one after another.

        Hundreds of parts go through the library as one text with a character between them that no
        piece holds: the library's work for every text is many times that for a part.
        """
        texts = [
            _SEPARATOR.join(parts[place : place + _PARTS_PER_TEXT]) + _SEPARATOR
            for place in range(0, len(parts), _PARTS_PER_TEXT)
        ]
        encoded = self._model.encode_batch_fast(texts, add_special_tokens=False)
        ids = np.array([token for item in encoded for token in item.ids], np.int64)
        marks = np.flatnonzero(ids == self._separator_id)
        counts = np.diff(marks, prepend=-1) - 1
        return counts, np.delete(ids, marks)


def can_be_cut(settings: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is BPE that sees the whole text with spaces as ``▁``, and no more.

    The only normalisation may be a ``▁`` in front and one for each space; BPE must not drop merges,
    mark subwords, or join unknown characters.
    """
    model = settings["model"]
    normalizer = settings.get("normalizer") or {}
    prefix = {"type": "Prepend", "prepend": _SPACE}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not model.get("ignore_merges")
        and bool(model.get("byte_fallback"))
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        and not any(_SEPARATOR in piece for piece in model["vocab"])
        and settings.get("pre_tokenizer") is None
        and normalizer.get("type") == "Sequence"
        and normalizer.get("normalizers") in ([prefix, spaces], [spaces])
        and not any(token["lstrip"] or token["rstrip"] for token in settings.get("added_tokens", ()))
    )


_ENCODERS: dict[str, Encoder] = {}


def load_encoder(path: Path) -> Encoder:
    """The quickest exact encoder for a ``tokenizer.json``, loaded once per process; ``</s>`` in a text is text."""
    key = str(path)
    if key not in _ENCODERS:
        opened = open_tokenizer(path, special_tokens_in_text=False)
        cut = opened.document is not None and can_be_cut(opened.document)
        _ENCODERS[key] = CachedBPE(opened.fast) if cut else PlainEncoder(opened.fast)
    return _ENCODERS[key]
