"""The efficiency report: any set of tokenizers over any set of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizer.base import BaseTokenizer
from tokenizer.gates import Gate


def stage_report(
    *,
    base: BaseTokenizer,
    pieces: Sequence[str],
    final_size: int,
    gates: Sequence[Gate],
    texts: Mapping[str, Sequence[str]],
    output_dir: Path,
    seconds: float,
) -> dict[str, Any]:
    """Write ``report.json`` of the vocabulary stage and return its content."""
    import sentencepiece

    before = sentencepiece.SentencePieceProcessor(model_proto=base.proto.SerializeToString())
    after = sentencepiece.SentencePieceProcessor(model_file=str(output_dir / "tokenizer.model"))
    tokenizers: dict[str, dict[str, Any]] = {"base": {}, "extended": {}}
    for language, lines in texts.items():
        for name, processor in (("base", before), ("extended", after)):
            tokens = sum(len(ids) for ids in processor.encode(list(lines), out_type=int))
            characters = sum(map(len, lines))
            tokenizers[name][language] = {
                "tokens": tokens,
                "characters": characters,
                "bytes": sum(len(line.encode()) for line in lines),
                "tokens_per_character": tokens / max(characters, 1),
            }
    document = {
        "base_vocabulary": base.size,
        "added": len(pieces),
        "vocabulary_size": final_size,
        "seconds": seconds,
        "gates": [item.as_dict() for item in gates],
        "tokenizers": tokenizers,
        "tokens_relative_to_base": {
            language: tokenizers["extended"][language]["tokens"]
            / max(tokenizers["base"][language]["tokens"], 1)
            for language in texts
        },
    }
    path = output_dir / "report.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return document
