"""The gates of a merged byte-level tokenizer; transformers takes the place of slow SentencePiece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tsugiki.tokenizer.base.byte_level import ByteLevelEncoder
from tsugiki.tokenizer.base.code_sample import code_lines
from tsugiki.tokenizer.gates.gate import (
    Gate,
    GateInputs,
    fast_tokenizer,
    gate,
    ids_or_error,
    protected_note,
    readers_note,
    unforeign,
)

_COMPARED_LINES = 2000


class ByteLevelChecks:
    """A method for each of :data:`tsugiki.tokenizer.gates.gate.PROOFS`.

    Args:
        inputs: what is looked at.
    """

    def __init__(self, inputs: GateInputs) -> None:
        assert inputs.base.document is not None
        self._inputs = inputs
        self._document = inputs.base.document
        self._base: Any = fast_tokenizer(inputs.base.directory)
        self._fast: Any = fast_tokenizer(inputs.directory)
        self._vocabulary: dict[str, int] = self._fast.get_vocab(with_added_tokens=True)

    @cached_property
    def _lines(self) -> list[str]:
        return self._inputs.every_line

    @cached_property
    def _auto(self) -> Any:
        """What transformers loads, or the error that it raises."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._inputs.directory)
        except Exception as error:  # whatever a loader raises is the finding
            return error

    def reachable(self) -> Gate:
        """Every piece as a pre-token is one token."""
        path = self._inputs.directory / "tokenizer.json"
        merged = ByteLevelEncoder(json.loads(path.read_text(encoding="utf-8")))
        first, pieces = self._inputs.base.size, self._inputs.pieces
        missing = [piece for offset, piece in enumerate(pieces) if merged.ids(piece) != [first + offset]]
        return gate("reachable", len(pieces), missing)

    def protected(self) -> Gate:
        """Ids on protected lines as the base has them."""
        changed: list[str] = []
        checked = 0
        for name, lines in self._inputs.protected.items():
            kept = unforeign(self._inputs, lines)
            checked += len(kept)
            for line, old, new in zip(kept, _ids(self._base, kept), _ids(self._fast, kept), strict=True):
                if old != new:
                    changed.append(f"{name}: {line[:120]!r}")
        return gate("protected", checked, changed, protected_note(self._inputs))

    def slow_equals_fast(self) -> Gate:
        """Ids of transformers and of ``tokenizer.json``."""
        natural = self._inputs.natural_lines
        sample = [*natural[:: max(1, len(natural) // _COMPARED_LINES)], *code_lines()]
        if isinstance(self._auto, Exception):
            return gate("slow_equals_fast", 0, [], "transformers does not load the directory: see loads")
        differing: list[str] = []
        for line, ours in zip(sample, _ids(self._fast, sample), strict=True):
            theirs = ids_or_error(self._auto, line)
            if theirs != ours:
                differing.append(f"{theirs}: {line[:200]}" if isinstance(theirs, str) else line[:200])
        return gate("slow_equals_fast", len(sample), differing, "transformers against tokenizers")

    def lossless(self) -> Gate:
        """Text through ids and back, where the base gives it back."""
        before, after = (
            tokenizer.decode_batch(_ids(tokenizer, self._lines), skip_special_tokens=False)
            for tokenizer in (self._base, self._fast)
        )
        lossy = [
            line[:200]
            for line, old, new in zip(self._lines, before, after, strict=True)
            if old == line != new
        ]
        return gate("lossless", len(self._lines), lossy)

    def contiguous(self) -> Gate:
        """Rows, and the base's tokens in them."""
        size, vocabulary = self._inputs.final_size, self._vocabulary
        failures = []
        if set(vocabulary.values()) != set(range(size)):
            failures.append(f"tokenizer.json has {len(vocabulary)} ids, not 0 to {size - 1}")
        failures += [
            f"base id {index} changed: {surface!r}"
            for surface, index in self._document["model"]["vocab"].items()
            if vocabulary.get(surface) != index
        ]
        return gate("contiguous", size, failures)

    def specials(self) -> Gate:
        """Added tokens keep their ids."""
        added = self._document.get("added_tokens") or []
        moved = [
            f"{token['content']!r} is not id {token['id']}"
            for token in added
            if self._vocabulary.get(token["content"]) != token["id"]
        ]
        return gate("specials", len(added), moved)

    def loads(self) -> Gate:
        """The directory in transformers."""
        failures: list[str] = []
        if isinstance(self._auto, Exception):
            failures.append(f"AutoTokenizer: {type(self._auto).__name__}: {self._auto}")
        elif len(self._auto) != self._inputs.final_size:
            failures.append(f"len(tokenizer) is {len(self._auto)}, not {self._inputs.final_size}")
        return gate("loads", 1, failures, readers_note(self._fast))


def _ids(tokenizer: Any, lines: Sequence[str]) -> list[list[int]]:
    return [item.ids for item in tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)]
