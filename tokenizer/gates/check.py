"""All gates of a merged tokenizer, as its kind of base asks for."""

from __future__ import annotations

from typing import Any

from tsugiki.tokenizer.gates.byte_level import ByteLevelChecks
from tsugiki.tokenizer.gates.gate import PROOFS, Gate, GateInputs
from tsugiki.tokenizer.gates.sentencepiece import SentencePieceChecks


def check(inputs: GateInputs) -> list[Gate]:
    """All gates of a merged tokenizer, in the order of :data:`PROOFS`."""
    checks: Any = (
        SentencePieceChecks(inputs) if inputs.base.kind == "sentencepiece" else ByteLevelChecks(inputs)
    )
    found: list[Gate] = [getattr(checks, name)() for name in PROOFS]
    return found
