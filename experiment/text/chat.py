"""Conversations as token ids with a mask of what to learn: the assistant's turns and nothing else.

A chat template is the Jinja template that Hugging Face models carry. What the assistant says stands
between ``{% generation %}`` and ``{% endgeneration %}``, as transformers marks it. Here the rendered
text is cut where it must be cut and every piece is encoded on its own, so that

- special tokens come from the template only: text of a message that looks like one stays text;
- the ids before an answer are exactly those that a model sees when it is asked for that answer;
- SentencePiece's dummy prefix stands at the beginning and after special tokens, as in transformers.

Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from tsugiki.experiment.errors import ConfigError, DataError

Message = Mapping[str, str]
Answers = Literal["continued", "separate"]

# Unicode noncharacters: no text may contain them, so they can mark places in the rendered text.
_BEGIN, _END, _SHIELD = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile("[\ufdd0-\ufdd2]")
IGNORED_LABEL = -100
"""Label of a token that does not count in the loss, as transformers and torch's cross entropy name it."""


class TextEncoder(Protocol):
    """What chat needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text of its own: dummy prefix where the tokenizer has one, no special tokens."""

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that continues another one: never a dummy prefix."""


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation.

    Attributes:
        text: the text, or the special token's.
        special: it is one special token.
        counts: in the loss; the assistant said it.
        fresh: it begins the text or follows a special token.
        answer: it is the first piece of an answer.
    """

    text: str
    special: bool
    counts: bool
    fresh: bool
    answer: bool = False


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as a model is trained on it.

    Attributes:
        ids: token ids.
        loss_mask: 1 where the token counts in the loss, as SeaLLM's token_type_ids.
    """

    ids: list[int]
    loss_mask: list[int]

    @property
    def labels(self) -> list[int]:
        """The ids, with -100 in place of what does not count in the loss."""
        pairs = zip(self.ids, self.loss_mask, strict=True)
        return [token if counts else IGNORED_LABEL for token, counts in pairs]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        source: the Jinja source; goes into the exported model as ``chat_template.jinja``.
        bos_token: text of the beginning-of-sequence token, None where the tokenizer has none.
        eos_token: text of the end-of-sequence token.
        special_tokens: texts of all special tokens that the template may write, these two included.
        answers: how an answer is encoded: ``continued`` from the prompt, as inference continues it;
            ``separate``, with a dummy prefix of its own, as BiLLa was trained.
        name: for messages.
    """

    source: str
    bos_token: str | None
    eos_token: str
    special_tokens: tuple[str, ...] = ()
    answers: Answers = "continued"
    name: str = "chat template"

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        bos_token: str | None,
        eos_token: str,
        special_tokens: Sequence[str] = (),
        answers: Answers = "continued",
    ) -> ChatTemplate:
        """Read a template file. Its last newline is not part of it.

        Raises:
            ConfigError: it cannot be read, is not Jinja, or does not mark what the assistant says.
        """
        try:
            source = path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("cannot read the chat template", where=path, got=error) from error
        template = cls(source, bos_token, eos_token, tuple(special_tokens), answers, str(path))
        if not re.search(r"{%-?\s*generation\b", source):
            raise ConfigError(
                "the chat template does not mark what the assistant says, so nothing would count in the loss",
                where=path,
                expected="{% generation %}...{% endgeneration %} around the assistant's text",
            )
        _ = template._compiled
        return template

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as text, special tokens written out.

        Raises:
            DataError: the messages are malformed, or the template refuses them.
        """
        return _MARKS.sub("", self._render(messages, add_generation_prompt))

    def segments(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Segment]:
        """The conversation cut at special tokens and at the borders of what the assistant says.

        Raises:
            DataError: as :meth:`render`.
        """
        found: list[Segment] = []
        counts, fresh, answer = False, True, False
        for piece in self._cut.split(self._render(messages, add_generation_prompt)):
            if piece == _BEGIN:
                counts = answer = True
            elif piece == _END:
                counts = answer = False
            elif piece in self._specials:
                found.append(Segment(piece, True, counts, fresh))
                fresh, answer = True, False
            elif text := piece.replace(_SHIELD, ""):
                found.append(Segment(text, False, counts, fresh, answer))
                fresh = answer = False
        return found

    def encode(
        self,
        messages: Sequence[Message],
        encoder: TextEncoder,
        special_ids: Mapping[str, int],
        *,
        add_generation_prompt: bool = False,
    ) -> EncodedChat:
        """The conversation as ids with the loss mask.

        Args:
            messages: ``{"role", "content"}`` in OpenAI's form.
            encoder: encodes text; must not turn any text into a special token.
            special_ids: ids of the special tokens by their text.
            add_generation_prompt: end with what asks the assistant for an answer.

        Raises:
            DataError: as :meth:`render`, or a special token has no id.
        """
        ids: list[int] = []
        mask: list[int] = []
        for segment in self.segments(messages, add_generation_prompt=add_generation_prompt):
            if segment.special:
                if segment.text not in special_ids:
                    raise DataError(
                        "the chat template writes a special token that the tokenizer does not have",
                        where=self.name,
                        got=segment.text,
                        expected=f"one of {', '.join(special_ids)}",
                    )
                new = [special_ids[segment.text]]
            elif segment.fresh or (segment.answer and self.answers == "separate"):
                new = encoder.encode(segment.text)
            else:
                new = encoder.encode_continuation(segment.text)
            ids += new
            mask += [int(segment.counts)] * len(new)
        return EncodedChat(ids, mask)

    @cached_property
    def _specials(self) -> frozenset[str]:
        named = (self.bos_token, self.eos_token, *self.special_tokens)
        return frozenset(token for token in named if token)

    @cached_property
    def _cut(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, [_BEGIN, _END, *longest_first]))})")

    @cached_property
    def _compiled(self) -> Any:
        import jinja2

        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                "the chat template is not Jinja", where=f"{self.name}, line {error.lineno}", got=error.message
            ) from error

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        import jinja2

        checked = [self._shielded(message, position) for position, message in enumerate(messages)]
        if not checked:
            raise DataError("a conversation without messages", where=self.name)
        try:
            return str(
                self._compiled.render(
                    messages=checked,
                    bos_token=self.bos_token or "",
                    eos_token=self.eos_token,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except jinja2.TemplateError as error:
            raise DataError(
                "the chat template refuses the conversation", where=self.name, got=error.message
            ) from error

    def _shielded(self, message: Message, position: int) -> dict[str, str]:
        """The message with a mark inside whatever looks like a special token."""
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(
                "malformed message",
                where=f"messages[{position}]",
                got=repr(dict(message))[:200],
                expected='{"role": "system", "user" or "assistant", "content": text}',
            )
        return {"role": self._shield(role), "content": self._shield(content)}

    def _shield(self, text: str) -> str:
        text = _MARKS.sub("\ufffd", text)
        for token in self._specials:
            text = text.replace(token, token[0] + _SHIELD + token[1:])
        return text


def _environment() -> Any:
    """Jinja as transformers sets it up, with marks for the generation blocks."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}``: its contents between two marks."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """Replace the block by a call that wraps its contents."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = jinja2.nodes.CallBlock(self.call_method("_wrap"), [], [], body)
            return call.set_lineno(line)

        def _wrap(self, caller: Callable[[], str]) -> str:
            return f"{_BEGIN}{caller()}{_END}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment


class HuggingFaceEncoder:
    """Encodes text with a ``tokenizer.json``, special tokens read as plain text.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``; it is set to read special tokens as text.
    """

    # Characters that begin no piece of more than themselves in the vocabularies seen so far; which of them
    # is safe is checked every time.
    _ANCHORS = ("\n", "\x01", "|")

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        first = tokenizer.encode("x", add_special_tokens=False).tokens[0]
        self._dummy_prefix: bool = first.startswith("\u2581")

    def encode(self, text: str) -> list[int]:
        """Ids of a text of its own."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that continues another one.

        Raises:
            DataError: no anchor leaves the text's own ids alone.
        """
        if not self._dummy_prefix:
            return self.encode(text)
        for anchor in self._ANCHORS:
            start, whole = self.encode(anchor), self.encode(anchor + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        raise DataError("cannot encode a text without the dummy prefix", got=repr(text[:80]))
