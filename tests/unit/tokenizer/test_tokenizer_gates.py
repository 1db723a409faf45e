"""Gates excuse no line, and look at code whatever the corpus holds and the configuration protects."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizer_material import mistral_base

from tsugiki.tokenizer.base.base import load_base
from tsugiki.tokenizer.base.code_sample import code_lines
from tsugiki.tokenizer.gates.gate import GateInputs
from tsugiki.tokenizer.gates.sentencepiece import SentencePieceChecks


def checks_of(directory: Path) -> SentencePieceChecks:
    base = load_base(directory)
    return SentencePieceChecks(GateInputs(base, directory, [], base.size, {}, {}, lambda line: False))


def test_a_difference_that_the_base_has_already_is_a_failure(tmp_path: Path) -> None:
    directory = mistral_base(tmp_path)
    assert checks_of(directory).slow_equals_fast().passed
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    # The shortest left part first: another file than SentencePiece would be read as.
    merges = document["model"]["merges"]
    spaces = [merge for merge in merges if not merge.strip("▁ ")]
    place = iter(sorted(spaces, key=lambda merge: [len(part) for part in merge.split(" ")]))
    document["model"]["merges"] = [next(place) if not merge.strip("▁ ") else merge for merge in merges]
    (directory / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    found = checks_of(directory)
    cut = found.slow_equals_fast()
    assert (cut.passed, cut.checked) == (False, len(code_lines())) and cut.failures > 50
    assert cut.note == f"the files of the base cut {cut.failures} of them apart already"
    assert not found.loads().passed


def test_every_gate_reads_code_tables_emoji_and_control_characters() -> None:
    lines = code_lines()
    assert {" " * depth + "x = 1" for depth in (1, 16, 17, 40, 200)} <= set(lines) and len(set(lines)) == len(
        lines
    )
    together = "\n".join(lines)
    assert all(
        part in together for part in ("\t\t", "\x1b[", "\u200d", "\ufe0f", "\x07", "</s>", "▁▁", "| a    |")
    )
