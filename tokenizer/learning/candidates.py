"""Which candidate pieces are refused: the filters that the BPE trainer asks before every merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.base import NORMAL, BaseTokenizer
from tsugiki.tokenizer.base.byte_level import ByteLevelEncoder, byte_surface, whole_characters
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.config import ExtendConfig


class LatinGuard:
    """Keeps Latin pieces out of English that the stage has not seen.

    Neighbouring base tokens of protected text, and of the words that its language uses at large, are tested
    exactly elsewhere; that is enough for a piece that begins a word. What it misses by chance in one word
    turns up inside another, so a piece from inside of words must not occur in any protected word at all; of a
    phrase, one of its words must not. And names travel between languages (▁LibreOffice, ▁Jakarta): a capital
    is allowed only at the beginning of a word that the target languages write in small letters too, and a piece
    from inside of words ("upyter", "brahim") only where such a word holds it.

    Args:
        protected: words of protected text.
        common: words of the target languages that are written in small letters, without names.
    """

    def __init__(self, protected: Iterable[str], common: Iterable[str]) -> None:
        self._protected = _searchable(protected)
        self._common = _searchable(common)

    def __call__(self, surface: str) -> str | None:
        """None, or the reason to refuse the piece."""
        cuts = [at for at, character in enumerate(surface) if at and character == SPACE]
        # ▁ab▁cd▁e: ▁ab▁ and ▁cd▁ are whole words, ▁e may go on.
        words = [
            surface[start : end + 1] for start, end in zip([0, *cuts], [*cuts, len(surface)], strict=True)
        ]
        begins_word = surface.startswith(SPACE) and len(words) == 1
        if not begins_word and all(
            word in self._protected or word.lower() in self._protected for word in words
        ):
            return "protected"
        if not begins_word and len(words) == 1 and surface not in self._common:
            return "name"
        for word in words:
            if word == word.lower():
                continue
            small = word[:1] + word[1:2].lower() + word[2:]
            if not word.startswith(SPACE) or small != word.lower() or small not in self._common:
                return "name"
        return None


def _searchable(words: Iterable[str]) -> str:
    """Distinct words, each led by ``▁``, as one string to search in."""
    return SPACE + SPACE.join(sorted(set(words))) + SPACE


@dataclass(frozen=True)
class Limits:
    """Longest piece.

    Attributes:
        characters: of its text.
        bytes: of its text in UTF-8.
    """

    characters: int
    bytes: int

    @classmethod
    def of(cls, extend: ExtendConfig) -> Limits:
        """What a configuration allows."""
        return cls(extend.maximum_piece_characters, extend.maximum_piece_bytes)

    def exceeded(self, text: str) -> bool:
        """Whether a piece of this text is too long."""
        return len(text) > self.characters or len(text.encode()) > self.bytes


class CandidateFilter:
    """Decides about candidate pieces while merges are learned.

    Args:
        base: the base.
        rules: one per target language; a piece has to satisfy one of them.
        forbidden: concatenations that would change protected text.
        limits: longest piece.
        guard: decides about pieces of letters that protected languages have; None takes them all.
        is_foreign: whether a piece has letters that they have not.
    """

    def __init__(
        self,
        base: BaseTokenizer,
        rules: Sequence[ScriptRule],
        forbidden: set[str],
        limits: Limits,
        guard: LatinGuard | None = None,
        is_foreign: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self._is_foreign = is_foreign
        self._guard = guard
        self._processor: Any = base.exact_processor()
        self._known = {piece.piece for piece in base.proto.pieces if piece.type == NORMAL}
        self._rules = [rule.matcher() for rule in rules]
        self._forbidden = forbidden
        self._limits = limits
        self._rank: dict[str, int] = {}

    def __call__(self, surface: str, left: int, right: int) -> str | None:
        """None and the piece is counted as learned, or the reason to refuse it."""
        if self._limits.exceeded(surface.replace(SPACE, " ")):
            return "long"
        if not any(rule(surface) for rule in self._rules):
            return "script"
        if surface in self._forbidden:
            return "protected"
        if self._guard is not None and not self._is_foreign(surface):
            reason = self._guard(surface)
            if reason is not None:
                return reason
        if len(surface) > 1 and not self.reachable(surface):
            return "unreachable"
        self._rank[surface] = len(self._rank)
        return None

    def reachable(self, surface: str) -> bool:
        """Whether base merges, then learned ones, bring the surface alone down to two symbols."""
        tokens = self._base_tokens(surface)
        rank = self._rank
        while len(tokens) > 2:
            best, at = len(rank), -1
            for index in range(len(tokens) - 1):
                found = rank.get(tokens[index] + tokens[index + 1], best)
                if found < best:
                    best, at = found, index
            if at < 0:
                return False
            tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]
        return len(tokens) == 2

    def _base_tokens(self, surface: str) -> list[str]:
        known, start = self._known, 0
        tokens: list[str] = []
        for index, character in enumerate(surface):
            if character not in known:
                tokens += self._encode(surface[start:index])
                tokens.append(character)
                start = index + 1
        return tokens + self._encode(surface[start:])

    def _encode(self, surface: str) -> list[str]:
        if not surface:
            return []
        return list(self._processor.encode(surface.replace(SPACE, " "), out_type=str))


class ByteCandidateFilter:
    """Decides about candidate pieces of a byte-level base.

    See :class:`CandidateFilter`.
    """

    def __init__(
        self,
        encoder: ByteLevelEncoder,
        surfaces: Sequence[str],
        rules: Sequence[ScriptRule],
        forbidden: set[str],
        limits: Limits,
        guard: LatinGuard | None = None,
        is_foreign: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self._guard, self._is_foreign = guard, is_foreign
        self._encoder = encoder
        self._rules = [rule.matcher() for rule in rules]
        self._forbidden = forbidden
        self._limits = limits
        self._surfaces = list(surfaces)
        self._rank: dict[tuple[str, str], int] = {}

    def __call__(self, surface: str, left: int, right: int) -> str | None:
        """None and the piece is counted as learned, or the reason to refuse it."""
        text = whole_characters(byte_surface(surface))
        if self._limits.exceeded(text) or len(byte_surface(surface)) > self._limits.bytes:
            return "long"
        if surface in self._forbidden:
            return "protected"
        spaced = text.replace(" ", "▁", 1) if text.startswith(" ") else text
        if text.strip(" ") and not any(rule(spaced) for rule in self._rules):
            return "script"
        if self._guard is not None and text.strip(" ") and not self._is_foreign(text):
            reason = self._guard(spaced)
            if reason is not None:
                return reason
        pair = (self._surfaces[left], self._surfaces[right])
        if self._segment(surface) != list(pair):
            return "unreachable"
        self._rank[pair] = len(self._rank)
        self._surfaces.append(surface)
        return None

    def _segment(self, surface: str) -> list[str]:
        tokens = self._encoder.surfaces(surface)
        while len(tokens) > 1:
            best, at = len(self._rank), -1
            for index in range(len(tokens) - 1):
                found = self._rank.get((tokens[index], tokens[index + 1]), best)
                if found < best:
                    best, at = found, index
            if at < 0:
                break
            tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]
        return tokens
