"""The rooms of the vocabulary stage import one way, and every gate is checked for both kinds of base."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

from tsugiki.tokenizer.config import GateName
from tsugiki.tokenizer.gates.byte_level import ByteLevelChecks
from tsugiki.tokenizer.gates.gate import PROOFS
from tsugiki.tokenizer.gates.sentencepiece import SentencePieceChecks

ROOT = Path(__file__).parents[3] / "tokenizer"
ALLOWED = {
    "base": set(),
    "gates": {"base"},
    "learning": {"base"},
    "measure": {"base", "gates", "learning"},
}
"""What each room may import; the files beside them may import all."""


def imported(path: Path) -> set[str]:
    """Rooms of the vocabulary stage that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tsugiki.tokenizer."):
            found.add(str(node.module).split(".")[2])
    return found


def test_rooms_import_one_way() -> None:
    seen: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for room in ALLOWED:
        for path in (ROOT / room).glob("*.py"):
            seen[room] |= imported(path) - {room, "config"}
    assert seen == ALLOWED


def test_every_gate_is_checked_for_both_kinds_of_base() -> None:
    assert set(PROOFS) == set(get_args(GateName)) and all(PROOFS.values())
    for checks in (SentencePieceChecks, ByteLevelChecks):
        assert set(PROOFS) == {name for name in vars(checks) if not name.startswith("_")}
