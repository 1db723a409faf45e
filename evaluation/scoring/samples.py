"""Greedy continuations of the same prompts by every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.evaluation.config import SampleConfig
from tsugiki.evaluation.scoring.heldout import Document
from tsugiki.evaluation.scoring.language_model import LanguageModel

CONFIGURED = "configuration"
HELDOUT = "held-out document"
_SHORTEST = 20
"""Characters of a document that a prompt is cut from."""


@dataclass(frozen=True)
class Prompt:
    """Text to continue.

    Attributes:
        language: language of the prompt.
        text: the prompt.
        origin: :data:`CONFIGURED` or :data:`HELDOUT`.
        reference: how the document it was cut from goes on; None for a configured prompt.
    """

    language: str
    text: str
    origin: str
    reference: str | None = None

    def as_record(self) -> dict[str, Any]:
        """The prompt as a line of ``samples.jsonl`` begins."""
        return {
            "language": self.language,
            "prompt": self.text,
            "origin": self.origin,
            "reference": self.reference,
        }


def choose_prompts(
    configured: Mapping[str, Sequence[str]], documents: Mapping[str, Sequence[Document]], config: SampleConfig
) -> list[Prompt]:
    """Configured prompts, and openings of held-out documents for languages without any."""
    prompts: list[Prompt] = []
    for language in dict.fromkeys([*documents, *configured]):
        if language in configured:
            prompts.extend(Prompt(language, text, CONFIGURED) for text in configured[language])
            continue
        long_enough = [document for document in documents[language] if len(document.text) >= _SHORTEST]
        for document in long_enough[: config.heldout_prompts_per_language]:
            # Of a short document at least half is left to continue.
            text, rest = _cut(document.text, min(config.prompt_characters, len(document.text) // 2))
            prompts.append(Prompt(language, text, HELDOUT, clip(rest, config.maximum_new_bytes)))
    return prompts


def _cut(text: str, characters: int) -> tuple[str, str]:
    """Split after about so many characters; between words where the script has spaces."""
    space = text.rfind(" ", characters // 2, characters + 1)
    position = space if space > 0 else characters
    while position < len(text) and _belong_together(text[position - 1], text[position]):
        position += 1
    return text[:position].rstrip(), text[position:]


def _belong_together(before: str, after: str) -> bool:
    """Whether two code points are part of one syllable sign.

    A mark belongs to the letter before it, a letter to the virama before it (Khmer coeng: a subscript
    follows), a Thai or Lao consonant to the vowel that is written before it.
    """
    import unicodedata

    virama = 9  # canonical combining class
    return (
        unicodedata.category(after).startswith("M")
        or unicodedata.combining(before) == virama
        or "\u0e40" <= before <= "\u0e44"
        or "\u0ec0" <= before <= "\u0ec4"
    )


def clip(text: str, maximum_bytes: int) -> str:
    """The beginning of a text, cut at a character, with an ellipsis when something is missing."""
    encoded = text.encode()
    if len(encoded) <= maximum_bytes:
        return text
    return encoded[:maximum_bytes].decode("utf-8", "ignore") + "…"


def continue_greedily(model: LanguageModel, prompts: Sequence[str], config: SampleConfig) -> list[str]:
    """The model's most likely continuation of each prompt, token by token.

    A prompt is cut at its beginning when it and the new tokens do not fit the model's positions.
    """
    return [
        text
        for first in range(0, len(prompts), _BATCH)
        for text in _continue_batch(model, prompts[first : first + _BATCH], config)
    ]


_BATCH = 16


def _continue_batch(model: LanguageModel, prompts: Sequence[str], config: SampleConfig) -> list[str]:
    import torch

    new_tokens = config.maximum_new_tokens
    encoded = [model.tokenizer.encode(prompt) for prompt in prompts]
    if model.max_positions is not None:
        new_tokens = min(new_tokens, model.max_positions - 2)
        room = model.max_positions - new_tokens - 1
        encoded = [ids[-room:] for ids in encoded]
    padding = min(model.stop_ids, default=0)
    width = 1 + max(len(ids) for ids in encoded)
    # Padded on the left, so that all rows go on from the same column.
    rows = [[padding] * (width - 1 - len(ids)) + [model.start_id, *ids] for ids in encoded]
    mask = [[0] * (width - 1 - len(ids)) + [1] * (1 + len(ids)) for ids in encoded]
    with torch.inference_mode():
        output = model.model.generate(
            torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens,
            eos_token_id=sorted(model.stop_ids) or None,
            pad_token_id=padding,
        )
    texts = []
    for ids, generated in zip(encoded, output[:, width:].tolist(), strict=True):
        end = next((at for at, token in enumerate(generated) if token in model.stop_ids), len(generated))
        # Decoded together with the prompt: on its own, a first piece would lose the space before it.
        before = model.tokenizer.decode(ids)
        whole = model.tokenizer.decode([*ids, *generated[:end]])
        text = whole[len(before) :] if whole.startswith(before) else model.tokenizer.decode(generated[:end])
        texts.append(clip(text, config.maximum_new_bytes))
    return texts
