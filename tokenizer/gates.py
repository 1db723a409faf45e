"""The gates: what must hold of a merged tokenizer before anything is trained with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.base import CONTROL, UNUSED, USER_DEFINED, BaseTokenizer
from tsugiki.tokenizer.base.merge import unreachable
from tsugiki.tokenizer.config import GateName

_EXAMPLES = 10


@dataclass(frozen=True)
class Gate:
    """Outcome of one gate.

    Attributes:
        name: which gate.
        passed: whether it holds.
        checked: how many things were looked at.
        failures: how many of them failed.
        examples: some of the failures, for people.
        note: what was left out of the count and why.
        waived: the configuration lets the run go on in spite of a failure.
    """

    name: GateName
    passed: bool
    checked: int
    failures: int
    examples: tuple[str, ...] = ()
    note: str = ""
    waived: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For ``report.json``."""
        return asdict(self)


def gate(name: GateName, checked: int, failures: Sequence[str], note: str = "") -> Gate:
    """A gate that passes when nothing failed."""
    return Gate(name, not failures, checked, len(failures), tuple(failures[:_EXAMPLES]), note)


@dataclass(frozen=True)
class GateInputs:
    """What the gates look at.

    Attributes:
        base: the base tokenizer.
        directory: the merged tokenizer's directory.
        pieces: added pieces, in id order.
        final_size: rows of the final vocabulary.
        protected: lines of protected text, by name (``en``, ``code``).
        lines: held-out lines by target language.
        is_foreign: whether a line holds characters of a target script.
    """

    base: BaseTokenizer
    directory: Path
    pieces: Sequence[str]
    final_size: int
    protected: Mapping[str, Sequence[str]]
    lines: Mapping[str, Sequence[str]]
    is_foreign: Callable[[str], bool]


def check_sentencepiece(inputs: GateInputs) -> list[Gate]:
    """All gates of a merged SentencePiece model."""
    import sentencepiece
    from tokenizers import Tokenizer

    base = sentencepiece.SentencePieceProcessor(model_proto=inputs.base.proto.SerializeToString())
    model_file = inputs.directory / "tokenizer.model"
    slow = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    fast = Tokenizer.from_file(str(inputs.directory / "tokenizer.json"))
    proto = type(inputs.base.proto)()
    proto.ParseFromString(model_file.read_bytes())
    every_line = [line for lines in (*inputs.protected.values(), *inputs.lines.values()) for line in lines]
    from tsugiki.tokenizer.base.base import exact_processor

    missing = unreachable(exact_processor(proto), inputs.pieces, inputs.base.size)
    return [
        gate("reachable", len(inputs.pieces), missing),
        _protected(base, slow, inputs),
        _slow_equals_fast(base, slow, fast, inputs, every_line),
        _lossless(base, slow, every_line),
        _contiguous(inputs, proto, fast),
        _specials(inputs, proto, fast),
        _loads(inputs),
    ]


def _protected(base: Any, merged: Any, inputs: GateInputs) -> Gate:
    checked = skipped = 0
    failures: list[str] = []
    for name, lines in inputs.protected.items():
        kept = [line for line in lines if not inputs.is_foreign(line)]
        skipped += len(lines) - len(kept)
        checked += len(kept)
        before, after = base.encode(kept, out_type=str), merged.encode(kept, out_type=str)
        for line, old, new in zip(kept, before, after, strict=True):
            if old != new:
                fresh = sorted(set(new) - set(old))
                failures.append(f"{name}: {' '.join(fresh)} in {line[:120]!r}")
    note = f"{skipped} lines with characters of a target script are meant to change" if skipped else ""
    return gate("protected", checked, failures, note)


def _slow_equals_fast(base: Any, slow: Any, fast: Any, inputs: GateInputs, lines: Sequence[str]) -> Gate:
    from tokenizers import Tokenizer

    differing = _disagreements(slow, fast, lines)
    note = ""
    failures = differing
    if differing:
        from tsugiki.experiment.text.hf_tokenizer import tokenizer_document

        document = inputs.base.document or tokenizer_document(inputs.base.proto)
        import json

        base_fast = Tokenizer.from_str(json.dumps(document))
        own = set(_disagreements(base, base_fast, differing))
        failures = [line for line in differing if line not in own]
        note = f"{len(own)} lines on which the base model itself ties (runs of spaces) are not counted"
    return gate("slow_equals_fast", len(lines), [line[:200] for line in failures], note)


def _disagreements(slow: Any, fast: Any, lines: Sequence[str]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(lines), 2000):
        chunk = list(lines[start : start + 2000])
        encoded = fast.encode_batch_fast(chunk, add_special_tokens=False)
        for line, ids, encoding in zip(chunk, slow.encode(chunk, out_type=int), encoded, strict=True):
            if ids != encoding.ids:
                found.append(line)
    return found


def _lossless(base: Any, merged: Any, lines: Sequence[str]) -> Gate:
    failures = []
    base_losses = 0
    for start in range(0, len(lines), 2000):
        chunk = list(lines[start : start + 2000])
        decoded = merged.decode(merged.encode(chunk, out_type=int))
        for line, text in zip(chunk, decoded, strict=True):
            if line != text:
                if base.decode(base.encode(line)) == line:
                    failures.append(line[:200])
                else:
                    base_losses += 1
    note = (
        f"{base_losses} lines that the base itself does not give back are not counted" if base_losses else ""
    )
    return gate("lossless", len(lines), failures, note)


def _contiguous(inputs: GateInputs, proto: Any, fast: Any) -> Gate:
    failures: list[str] = []
    if len(proto.pieces) != inputs.final_size:
        failures.append(f"tokenizer.model has {len(proto.pieces)} pieces, not {inputs.final_size}")
    vocabulary = fast.get_vocab(with_added_tokens=True)
    if len(vocabulary) != inputs.final_size or set(vocabulary.values()) != set(range(inputs.final_size)):
        failures.append(f"tokenizer.json has {len(vocabulary)} ids, not 0 to {inputs.final_size - 1}")
    for index, piece in enumerate(proto.pieces):
        if vocabulary.get(piece.piece) != index:
            failures.append(f"id {index} is {piece.piece!r} in tokenizer.model only")
    for index, piece in enumerate(inputs.base.proto.pieces):
        if proto.pieces[index] != piece:
            failures.append(f"base id {index} changed: {piece.piece!r}")
    return gate("contiguous", inputs.final_size, failures)


def _specials(inputs: GateInputs, proto: Any, fast: Any) -> Gate:
    failures: list[str] = []
    old = inputs.base.proto
    for field in ("unk_id", "bos_id", "eos_id", "pad_id", "byte_fallback"):
        if getattr(old.trainer_spec, field) != getattr(proto.trainer_spec, field):
            failures.append(f"{field} changed")
    if old.normalizer_spec != proto.normalizer_spec:
        failures.append("the normaliser changed")
    specials = [p.piece for p in old.pieces if p.type in (CONTROL, USER_DEFINED)]
    for index, piece in enumerate(old.pieces):
        if piece.type in (CONTROL, USER_DEFINED) and fast.token_to_id(piece.piece) != index:
            failures.append(f"{piece.piece!r} is not id {index} in tokenizer.json")
    for index in range(inputs.base.size, len(proto.pieces)):
        if proto.pieces[index].type == UNUSED and SPACE in proto.pieces[index].piece:
            failures.append(f"reserved piece {index} could be read from text")
    return gate("specials", len(specials), failures)


def _loads(inputs: GateInputs) -> Gate:
    """The directory loads in transformers, as a fast tokenizer and as slow SentencePiece."""
    failures: list[str] = []
    sample = [line for lines in inputs.lines.values() for line in lines[:20] if line]
    import sentencepiece
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    slow = sentencepiece.SentencePieceProcessor(model_file=str(inputs.directory / "tokenizer.model"))
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
        wrong = [
            line for line in sample if tokenizer.encode(line, add_special_tokens=False) != slow.encode(line)
        ]
        failures.extend(f"{name}: {line[:100]!r}" for line in wrong[:3])
    return gate("loads", len(loaders), failures)


def enforce(gates: Sequence[Gate], waived: Sequence[GateName]) -> list[Gate]:
    """Mark waived failures, and stop on any other.

    Raises:
        DataError: a gate failed that the configuration does not waive; with examples.
    """
    from dataclasses import replace

    result = [
        replace(item, waived=True) if not item.passed and item.name in waived else item for item in gates
    ]
    fatal = [item for item in result if not item.passed and not item.waived]
    if fatal:
        lines = []
        for item in fatal:
            lines.append(f"{item.name}: {item.failures} of {item.checked}")
            lines.extend(f"    {example}" for example in item.examples[:5])
        raise DataError(
            "the extended tokenizer failed its gates: " + ", ".join(item.name for item in fatal),
            where="tokenizer.extend",
            got="\n  ".join(lines),
            fix="give tokenizer.extend more protected text (protect, protect_bytes), or waive on purpose: "
            f"tokenizer.extend.waive: [{', '.join(item.name for item in fatal)}]",
        )
    return result
