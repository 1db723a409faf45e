"""The name by which llama.cpp knows a byte-level tokenizer's way of cutting text.

Its converter recognises a tokenizer by a hash of the ids of one text, which added merges change. Here the rule itself
is compared: the pre-tokenizer in ``tokenizer.json`` against those that ``llm_tokenizer_bpe`` in llama-vocab.cpp has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _ENGLISH + r"\p{N}{1,3}" + _REST
QWEN2 = _ENGLISH + r"\p{N}" + _REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_Step = tuple[str, object]
_GPT2: _Step = ("bytes", True)
_BYTES: _Step = ("bytes", False)
# (steps, whether a word that is a token is taken whole before any merge) -> name
_NAMES: dict[tuple[tuple[_Step, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((("digits", True), _GPT2), False): "smollm",
    ((("split", LLAMA3), _BYTES), True): "llama-bpe",
    ((("split", LLAMA3), _BYTES), False): "smaug-bpe",
    ((("split", QWEN2), _BYTES), False): "qwen2",
    ((("split", TEKKEN), _BYTES), True): "tekken",
}
KNOWN = tuple(_NAMES.values())
"""Names that are recognised."""


def pre_tokenizer_name(document: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the pre-tokenizer of a ``tokenizer.json``; None where it has none of that rule."""
    steps = tuple(_steps(document.get("pre_tokenizer") or {}))
    return _NAMES.get((steps, bool(document["model"].get("ignore_merges"))))


def is_byte_level(document: Mapping[str, Any]) -> bool:
    """Whether text becomes bytes before it is merged."""
    return any(kind == "bytes" for kind, _ in _steps(document.get("pre_tokenizer") or {}))


def _steps(rule: Mapping[str, Any]) -> Iterator[_Step]:
    kind = rule.get("type")
    if kind == "Sequence":
        for part in rule.get("pretokenizers", []):
            yield from _steps(part)
    elif kind == "ByteLevel":
        yield (
            ("bytes", bool(rule.get("use_regex", True))) if not rule.get("add_prefix_space") else ("?", kind)
        )
    elif kind == "Digits":
        yield "digits", bool(rule.get("individual_digits"))
    elif kind == "Split" and rule.get("behavior") == "Isolated" and not rule.get("invert"):
        yield "split", rule.get("pattern", {}).get("Regex")
    elif kind:
        yield "?", kind
