"""What transformers reads beside the vocabulary, so that releases 4 and 5 read an extended tokenizer alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FAST_CLASS = "PreTrainedTokenizerFast"
_MODEL_INPUTS = ["input_ids", "attention_mask"]
_PADS_LEFT = frozenset({"Llama", "CodeLlama", "Gemma", "Cohere"})
"""Tokenizer classes with ``padding_side = "left"`` in transformers 4 and 5, by the name before ``Tokenizer``."""
_OF_THE_SOURCE = (
    "auto_map",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "name_or_path",
    "backend",
    "is_local",
)
_COMMENT = "#version"


def portable_settings(settings: Mapping[str, Any], *, source_class: str = FAST_CLASS) -> dict[str, Any]:
    """``tokenizer_config.json`` of a tokenizer whose ``tokenizer.json`` is to be read as it stands.

    The architecture's own class (LlamaTokenizer) would rebuild normaliser and decoder on loading, so the plain class
    is named. That class has other defaults: it hands ``token_type_ids`` to the model in transformers 4, which
    ``generate`` refuses, and pads on the right. Both are therefore written as the source had them.

    Args:
        settings: of the source.
        source_class: how transformers opens the source where the settings do not say.
    """
    found = dict(settings)
    name = str(found.get("tokenizer_class") or source_class)
    family = name.removesuffix("Fast").removesuffix("Tokenizer")
    found.setdefault("model_input_names", list(_MODEL_INPUTS))
    found.setdefault("padding_side", "left" if family in _PADS_LEFT else "right")
    found["tokenizer_class"] = FAST_CLASS
    for key in _OF_THE_SOURCE:
        found.pop(key, None)
    return found


def merge_pair(merge: str | Sequence[str]) -> list[str]:
    """Left and right part of a merge as ``tokenizer.json`` has it: ``"left right"``, or a pair since 2024."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def written_merges(merges: Iterable[Sequence[str]]) -> list[str] | list[list[str]]:
    """Merges as every release reads them: ``"left right"``, which transformers before 4.45 needs.

    A part that holds a space cannot be written so, nor can one that would make the line a comment; then all of them
    are pairs.
    """
    pairs = [list(merge) for merge in merges]
    if any(not_for_strings(pair) for pair in pairs):
        return pairs
    return [f"{left} {right}" for left, right in pairs]


def not_for_strings(pair: Sequence[str]) -> bool:
    """Whether a merge can only be written as a pair."""
    return any(" " in part or not part for part in pair) or pair[0].startswith(_COMMENT)
