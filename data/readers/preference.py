"""Pairs of answers to the same conversation, of which one was preferred, from the forms in which they are published.

An answer is a text behind a prompt (a text or messages), or a list of messages that ends with it and begins with the
prompt, as ``chosen`` and ``rejected`` of UltraFeedback and HH do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tsugiki.data.common.charset import encodable
from tsugiki.data.config import ReaderConfig
from tsugiki.data.readers.base import lookup

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Refused:
    """Why a record is no pair.

    Attributes:
        rule: its name in the report.
        detail: for people.
    """

    rule: str
    detail: str


class PreferencePair(NamedTuple):
    """A pair.

    Attributes:
        messages: prompt and chosen answer.
        rejected: the other answer.
    """

    messages: list[dict[str, str]]
    rejected: dict[str, str]


def preference_pair(record: dict[str, Any], options: ReaderConfig) -> PreferencePair | Refused:
    """A record as a pair, or what is wrong with it: missing, of a wrong type, without a prompt or with two, an empty
    answer, equal answers."""
    values = {}
    for key in (options.chosen_key, options.rejected_key):
        if (value := lookup(record, key)) is None:
            available = ", ".join(list(record)[:12])
            return Refused("read.missing_field", f"no field '{key}'; the record has: {available}")
        values[key] = value
    prompt = _messages(lookup(record, options.prompt_key) or [], "user")
    if prompt is None:
        return Refused(
            "read.wrong_type", f"field '{options.prompt_key}' is neither a text nor a list of messages"
        )
    ends: list[dict[str, str]] = []
    befores: list[list[dict[str, str]]] = []
    for key, value in values.items():
        messages = _messages(value, "assistant")
        if not messages or messages[-1]["role"] != "assistant":
            return Refused("read.wrong_type", f"field '{key}' is no answer of the assistant")
        if not messages[-1]["content"].strip():
            return Refused("read.empty_answer", f"field '{key}' is empty")
        ends.append(messages[-1])
        befores.append(messages[:-1])
    if befores[0] != befores[1]:
        return Refused("read.different_prompts", "the answers are to different conversations")
    if ends[0]["content"].strip() == ends[1]["content"].strip():
        return Refused("read.equal_answers", "both answers are the same")
    before = befores[0]
    if before[: len(prompt)] != prompt:  # where the answers hold the prompt as well, it is there once
        before = prompt + before
    if not before:
        return Refused(
            "read.missing_field", f"no prompt, neither in '{options.prompt_key}' nor before the answers"
        )
    return PreferencePair([*before, ends[0]], ends[1])


def _messages(value: Any, role: str) -> list[dict[str, str]] | None:
    """A text as a message of that role, or messages; None for anything else."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list):
        return None
    for item in value:
        known = isinstance(item, dict) and item.get("role") in _ROLES and isinstance(item.get("content"), str)
        if not known:
            return None
    return [{"role": item["role"], "content": encodable(item["content"])} for item in value]
