"""The gates of a merged SentencePiece model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.base import CONTROL, UNUSED, USER_DEFINED, exact_processor
from tsugiki.tokenizer.base.code_sample import code_lines
from tsugiki.tokenizer.base.merge import unreachable
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

_TOGETHER = 2000


class SentencePieceChecks:
    """A method for each of :data:`tsugiki.tokenizer.gates.gate.PROOFS`.

    Args:
        inputs: what is looked at.
    """

    def __init__(self, inputs: GateInputs) -> None:
        import sentencepiece

        self._inputs = inputs
        model_file = inputs.directory / "tokenizer.model"
        serialised = inputs.base.proto.SerializeToString()
        self._base: Any = sentencepiece.SentencePieceProcessor(model_proto=serialised)
        self._slow: Any = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self._fast: Any = fast_tokenizer(inputs.directory)
        self._proto: Any = type(inputs.base.proto)()
        self._proto.ParseFromString(model_file.read_bytes())

    @cached_property
    def _lines(self) -> list[str]:
        return self._inputs.every_line

    def reachable(self) -> Gate:
        """Every piece alone, normaliser off, is one token."""
        pieces = self._inputs.pieces
        missing = unreachable(exact_processor(self._proto), pieces, self._inputs.base.size)
        return gate("reachable", len(pieces), missing)

    def protected(self) -> Gate:
        """Surfaces on protected lines as the base has them."""
        checked = 0
        failures: list[str] = []
        for name, lines in self._inputs.protected.items():
            kept = unforeign(self._inputs, lines)
            checked += len(kept)
            before, after = self._base.encode(kept, out_type=str), self._slow.encode(kept, out_type=str)
            for line, old, new in zip(kept, before, after, strict=True):
                if old != new:
                    fresh = sorted(set(new) - set(old))
                    failures.append(f"{name}: {' '.join(fresh)} in {line[:120]!r}")
        return gate("protected", checked, failures, protected_note(self._inputs))

    def slow_equals_fast(self) -> Gate:
        """Ids of SentencePiece and of ``tokenizer.json``."""
        failures = _disagreements(self._slow, self._fast, self._lines)
        note = ""
        if failures:
            base = fast_tokenizer(self._inputs.base.directory)
            own = len(_disagreements(self._base, base, failures))
            note = f"the files of the base cut {own} of them apart already" if own else ""
        return gate("slow_equals_fast", len(self._lines), [line[:200] for line in failures], note)

    def lossless(self) -> Gate:
        """Text through ids and back."""
        failures = []
        base_losses = 0
        for start in range(0, len(self._lines), _TOGETHER):
            chunk = self._lines[start : start + _TOGETHER]
            decoded = self._slow.decode(self._slow.encode(chunk, out_type=int))
            for line, text in zip(chunk, decoded, strict=True):
                if line != text:
                    if self._base.decode(self._base.encode(line)) == line:
                        failures.append(line[:200])
                    else:
                        base_losses += 1
        note = (
            f"{base_losses} lines that the base itself does not give back are not counted"
            if base_losses
            else ""
        )
        return gate("lossless", len(self._lines), failures, note)

    def contiguous(self) -> Gate:
        """Rows of both files, and the base's pieces in them."""
        size, proto = self._inputs.final_size, self._proto
        failures: list[str] = []
        if len(proto.pieces) != size:
            failures.append(f"tokenizer.model has {len(proto.pieces)} pieces, not {size}")
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        if len(vocabulary) != size or set(vocabulary.values()) != set(range(size)):
            failures.append(f"tokenizer.json has {len(vocabulary)} ids, not 0 to {size - 1}")
        for index, piece in enumerate(proto.pieces):
            if vocabulary.get(piece.piece) != index:
                failures.append(f"id {index} is {piece.piece!r} in tokenizer.model only")
        for index, piece in enumerate(self._inputs.base.proto.pieces):
            if proto.pieces[index] != piece:
                failures.append(f"base id {index} changed: {piece.piece!r}")
        return gate("contiguous", size, failures)

    def specials(self) -> Gate:
        """Special ids, normaliser and reserved pieces."""
        failures: list[str] = []
        old, proto = self._inputs.base.proto, self._proto
        for field in ("unk_id", "bos_id", "eos_id", "pad_id", "byte_fallback"):
            if getattr(old.trainer_spec, field) != getattr(proto.trainer_spec, field):
                failures.append(f"{field} changed")
        if old.normalizer_spec != proto.normalizer_spec:
            failures.append("the normaliser changed")
        specials = [piece.piece for piece in old.pieces if piece.type in (CONTROL, USER_DEFINED)]
        for index, piece in enumerate(old.pieces):
            special = piece.type in (CONTROL, USER_DEFINED)
            if special and self._fast.token_to_id(piece.piece) != index:
                failures.append(f"{piece.piece!r} is not id {index} in tokenizer.json")
        for index in range(self._inputs.base.size, len(proto.pieces)):
            if proto.pieces[index].type == UNUSED and SPACE in proto.pieces[index].piece:
                failures.append(f"reserved piece {index} could be read from text")
        return gate("specials", len(specials), failures)

    def loads(self) -> Gate:
        """The directory in transformers, as a fast tokenizer and as slow SentencePiece."""
        from transformers import AutoTokenizer
        from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

        inputs = self._inputs
        failures: list[str] = []
        sample = [line for lines in inputs.lines.values() for line in lines[:20] if line] + code_lines()
        loaders: dict[str, Callable[[], Any]] = {
            "AutoTokenizer": lambda: AutoTokenizer.from_pretrained(inputs.directory),
            "slow SentencePiece": lambda: SentencePieceBackend(
                vocab_file=str(inputs.directory / "tokenizer.model"), unk_token="<unk>"
            ),
        }
        for name, load in loaders.items():
            try:
                tokenizer = load()
            except Exception as error:  # whatever a loader raises is the finding
                failures.append(f"{name}: {type(error).__name__}: {error}")
                continue
            if len(tokenizer) != inputs.final_size:
                failures.append(f"{name}: len(tokenizer) is {len(tokenizer)}, not {inputs.final_size}")
            found = ((line, ids_or_error(tokenizer, line), self._slow.encode(line)) for line in sample)
            wrong = [(line, theirs) for line, theirs, ours in found if theirs != ours]
            for line, theirs in wrong[:3]:
                said = f": {theirs}" if isinstance(theirs, str) else ""
                failures.append(f"{name}: {line[:100]!r}{said}")
        return gate("loads", len(loaders), failures, readers_note(self._fast))


def _disagreements(slow: Any, fast: Any, lines: Sequence[str]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(lines), _TOGETHER):
        chunk = list(lines[start : start + _TOGETHER])
        encoded = fast.encode_batch_fast(chunk, add_special_tokens=False)
        for line, ids, encoding in zip(chunk, slow.encode(chunk, out_type=int), encoded, strict=True):
            if ids != encoding.ids:
                found.append(line)
    return found
