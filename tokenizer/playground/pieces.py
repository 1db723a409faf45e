"""How tokenizers cut a text: pieces, and their costs; coloured for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.experiment.text.tokenizer_files import OpenedTokenizer
from tsugiki.tokenizer.base.byte_level import byte_surface

# Black on four pale backgrounds in turn (256 colours), so that neighbours differ.
_TONES = (153, 223, 194, 218)
_RESET = "\x1b[0m"


@dataclass(frozen=True)
class Cut:
    """A text as one tokenizer cuts it.

    Attributes:
        name: of the tokenizer.
        ids: token ids.
        pieces: what each stands for, as people read it; ``<0xE6>`` where it is a part of a character.
        characters: of the text.
    """

    name: str
    ids: list[int]
    pieces: list[str]
    characters: int

    @property
    def tokens_per_character(self) -> float:
        """Tokens divided by Unicode characters; 0 for no text."""
        return len(self.ids) / self.characters if self.characters else 0.0


def cut_text(name: str, tokenizer: OpenedTokenizer, text: str) -> Cut:
    """A text as a tokenizer cuts it.

    Raises:
        DataError: the tokenizer has no fast form.
    """
    ids = tokenizer.encode(text)
    byte_level = is_byte_level(tokenizer)
    added = tokenizer.fast.get_added_tokens_decoder()
    pieces = [shown(tokenizer.surface(index), byte_level and index not in added) for index in ids]
    return Cut(name, ids, pieces, len(text))


def is_byte_level(tokenizer: OpenedTokenizer) -> bool:
    """Whether surfaces are written in GPT-2's byte alphabet."""
    return "ByteLevel" in str((tokenizer.document or {}).get("pre_tokenizer"))


def shown(surface: str, byte_level: bool) -> str:
    """A token as people read it."""
    if not byte_level:
        return surface.replace(SPACE, " ")
    data = byte_surface(surface)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{value:02X}>" for value in data)


def terminal_lines(cuts: Iterable[Cut], *, colours: bool) -> Iterator[str]:
    """What a terminal shows: a line of costs, then the pieces.

    Args:
        cuts: the same text by several tokenizers; costs are relative to the first.
        colours: backgrounds part the pieces; else a bar does.
    """
    reference = None
    for cut in cuts:
        reference = len(cut.ids) if reference is None else reference
        relative = f", {len(cut.ids) / reference:.3f} of the first" if reference else ""
        yield f"{cut.name}: {len(cut.ids):,} tokens, {cut.tokens_per_character:.3f} a character{relative}"
        # What a text brings along must not steer the terminal.
        pieces = [_printable(piece) for piece in cut.pieces]
        if colours:
            yield "".join(
                f"\x1b[30;48;5;{_TONES[number % len(_TONES)]}m{piece}{_RESET}"
                for number, piece in enumerate(pieces)
            )
        else:
            yield "|".join(pieces)


def _printable(text: str) -> str:
    return "".join(
        item if item.isprintable() else {"\n": "⏎", "\t": "⇥"}.get(item, f"<U+{ord(item):04X}>")
        for item in text
    )


def require_names(tokenizers: Mapping[str, object], given: int) -> None:
    """Refuse two tokenizers of one name.

    Raises:
        ConfigError: there are fewer names than tokenizers, or none.
    """
    if not given or len(tokenizers) != given:
        raise ConfigError(
            "every tokenizer needs a name of its own",
            where="--tokenizer",
            got=f"{given} tokenizers, names {', '.join(tokenizers)}",
            expected="--tokenizer NAME=PATH, one or several",
        )
