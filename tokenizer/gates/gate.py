"""What a gate is: its name and proof, what it looks at, its outcome, and what a failure does.

:data:`PROOFS` lists the gates for both kinds of base. How each is checked stands in ``sentencepiece.py`` and
``byte_level.py``, one method of the gate's name each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.tokenizer_files import open_tokenizer
from tsugiki.experiment.text.tokenizer_settings import merge_pair, not_for_strings
from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.code_sample import code_lines
from tsugiki.tokenizer.config import GateName

PROOFS: dict[GateName, str] = {
    "reachable": "every added piece is what its own text is cut into",
    "protected": "protected text is cut as the base cuts it",
    "slow_equals_fast": "two implementations cut alike: SentencePiece or transformers, and tokenizers",
    "lossless": "text comes back from its ids, where the base gives it back",
    "contiguous": "ids are 0 to the last row without a gap, those of the base as they were",
    "specials": "special tokens and normalisation are the base's",
    "loads": "transformers loads the directory and cuts alike",
}
"""What each gate proves, in the order of the report."""
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

    @property
    def natural_lines(self) -> list[str]:
        """Protected lines, then those of the target languages."""
        return [line for lines in (*self.protected.values(), *self.lines.values()) for line in lines]

    @property
    def every_line(self) -> list[str]:
        """Those, and the code that every model reads, whatever the configuration protects."""
        return [*self.natural_lines, *code_lines()]


def fast_tokenizer(directory: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a directory as the other implementation reads text.

    Special tokens that stand in a text are text, as in documents; SentencePiece's user-defined pieces and other
    added tokens are read as such, as SentencePiece and transformers do.
    """
    fast = open_tokenizer(directory).fast
    fast.encode_special_tokens = True
    return fast


def readers_note(fast: Any) -> str:
    """Which releases of transformers cannot read the merges, and why; empty where all can."""
    merges = json.loads(fast.to_str())["model"]["merges"]
    pair = next((merge for merge in map(merge_pair, merges) if not_for_strings(merge)), None)
    return (
        f"transformers before 4.45 cannot read the merges, for one is {pair[0]!r} and {pair[1]!r}"
        if pair
        else ""
    )


def ids_or_error(tokenizer: Any, line: str) -> list[int] | str:
    """Ids of a line by a tokenizer of transformers, or what it raises: a finding of a gate like other ids."""
    try:
        ids: list[int] = tokenizer.encode(line, add_special_tokens=False, split_special_tokens=True)
    except Exception as error:  # one that loads need not encode
        return f"{type(error).__name__}: {error}"
    return ids


def unforeign(inputs: GateInputs, lines: Sequence[str]) -> list[str]:
    """The lines that must not change: those without characters of a target script."""
    return [line for line in lines if not inputs.is_foreign(line)]


def protected_note(inputs: GateInputs) -> str:
    """What the gate of protected text leaves out, and why."""
    skipped = sum(len(lines) - len(unforeign(inputs, lines)) for lines in inputs.protected.values())
    return f"{skipped} lines with characters of a target script are meant to change" if skipped else ""


def enforce(gates: Sequence[Gate], waived: Sequence[GateName]) -> list[Gate]:
    """Mark waived failures, and stop on any other.

    Raises:
        DataError: a gate failed that the configuration does not waive; with examples.
    """
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
