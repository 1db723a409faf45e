"""Conversations in Megatron's indexed datasets: the loss mask travels in the sign.

A dataset holds one number per token. A token that does not count in the loss is stored as ``-1 - id``, so the mask
needs no second file, survives shuffling, packing and blending, and costs nothing: text sources have no
negative numbers. The ids must be stored signed (int32). Id 0, the unknown token, becomes -1, which the
training data take for padding; a padding token does not count either, so nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.chat import Answers, ChatTemplate, HuggingFaceEncoder, Message
from tsugiki.experiment.text.tokenizer_files import open_tokenizer

TEMPLATE_NAME = "chat_template.jinja"


class ChatConfig(StrictModel):
    """How conversations become tokens."""

    template: str = Field(min_length=1)
    """Jinja chat template that marks what the assistant says with ``{% generation %}``, e.g. one of
    configs/chat_templates/; the exported model carries it."""
    answers: Answers = "continued"
    """``continued``: an answer is encoded as inference continues the prompt; ``separate``: as a text of its
    own, with SentencePiece's dummy prefix, as BiLLa was trained."""


def mark(token: int, counts: int | bool) -> int:
    """What is stored for a token that counts in the loss, or does not."""
    return token if counts else -1 - token


def unmark(tokens: Any) -> tuple[Any, Any]:
    """Ids and loss mask, from stored numbers.

    Args:
        tokens: a torch tensor or numpy array of any shape.

    Returns:
        Two of the same kind and shape: ids, and the loss mask: True where the token counts.
    """
    loss_mask = tokens >= 0
    # -1 - x for negative x is its bitwise complement: x ^ -1. Arithmetic keeps both libraries happy.
    return tokens * loss_mask + (-1 - tokens) * ~loss_mask, loss_mask


class ChatEncoder:
    """Encodes conversations for the tokens stage.

    Args:
        template: the chat template.
        encoder: encodes text.
        special_ids: ids of the special tokens by their text.
        end_id: the end-of-document token.
    """

    def __init__(
        self, template: ChatTemplate, encoder: HuggingFaceEncoder, special_ids: Mapping[str, int], end_id: int
    ) -> None:
        self.template = template
        self._encoder = encoder
        self._special_ids = special_ids
        self._end_id = end_id

    @classmethod
    def load(cls, config: ChatConfig, tokenizer_dir: Path) -> ChatEncoder:
        """For a tokenizer directory (``tokenizer.json``, ``tokenizer_config.json``).

        Raises:
            ConfigError: the template cannot be used.
            DataError: the tokenizer cannot be read, or has no end-of-sequence token.
        """
        opened = open_tokenizer(tokenizer_dir, special_tokens_in_text=False)
        special_ids = {
            token.content: number
            for number, token in opened.fast.get_added_tokens_decoder().items()
            if token.special
        }
        texts = {number: content for content, number in special_ids.items()}
        end = opened.require_eos("to end answers with")
        if end not in texts:
            raise DataError(
                "the end-of-sequence token is not a special one, so answers may contain it",
                where=tokenizer_dir / "tokenizer_config.json",
                got=f"eos_token {opened.surface(end)!r}",
                expected=f"one of {', '.join(special_ids)}",
            )
        bos = None if opened.bos_id is None else opened.surface(opened.bos_id)
        template = ChatTemplate.load(
            expand_path(config.template),
            bos_token=bos,
            eos_token=texts[end],
            special_tokens=list(special_ids),
            answers=config.answers,
        )
        return cls(template, HuggingFaceEncoder(opened.fast), special_ids, end)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """A conversation as it is stored, the end-of-document token last.

        Where the template ends with that token it is not written twice; where it does not, the one added
        does not count in the loss.

        Raises:
            DataError: malformed messages, or a conversation without an answer to learn.
        """
        encoded = self.template.encode(messages, self._encoder, self._special_ids)
        if not any(encoded.loss_mask):
            raise DataError(
                "a conversation without an answer",
                got=f"roles {', '.join(str(message.get('role')) for message in messages)}",
                expected="at least one message of the assistant",
            )
        stored = [mark(*pair) for pair in zip(encoded.ids, encoded.loss_mask, strict=True)]
        if encoded.ids[-1] != self._end_id:
            stored.append(mark(self._end_id, False))
        return stored

    def encode_pair(self, chosen: Sequence[Message], rejected: Sequence[Message]) -> list[list[int]]:
        """Two answers to the same conversation as they are stored; of each the last answer alone counts in the loss.

        Raises:
            DataError: as :meth:`encode`, or the template writes the same for both.
        """
        pair = [_last_answer(self.encode(messages)) for messages in (chosen, rejected)]
        if pair[0] == pair[1]:
            raise DataError("the chat template writes two answers alike", where=self.template.name)
        return pair


def _last_answer(stored: list[int]) -> list[int]:
    """The same with nothing in the loss but the last run of what was."""
    end = max(place for place, number in enumerate(stored) if number >= 0) + 1
    begin = max((place for place, number in enumerate(stored[:end]) if number < 0), default=-1) + 1
    return [
        number if begin <= place < end or number < 0 else mark(number, False)
        for place, number in enumerate(stored)
    ]
