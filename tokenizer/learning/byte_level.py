"""Byte-level BPE bases (Llama 3, Qwen, SmolLM, Mistral's tekken): extension by continued merges.

Here a merge is a pair in a list, and the base's pre-tokeniser cuts text first; both are followed as they are.
A piece is written in GPT-2's byte alphabet and may be part of a character.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.experiment.errors import DataError
from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.merge import RESERVED
from tsugiki.tokenizer.base.scripts import ScriptRule
from tsugiki.tokenizer.gates import Gate, GateInputs, gate
from tsugiki.tokenizer.learning.bpe_trainer import LearnedPiece, Segments
from tsugiki.tokenizer.learning.segments import LatinGuard
from tsugiki.tokenizer.measure.efficiency import byte_surface

_SPECIAL_SURFACE = "\0"


class ByteLevelEncoder:
    """The parts of a byte-level tokenizer: pre-tokeniser and BPE model.

    Args:
        document: content of ``tokenizer.json``.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_str(json.dumps(document))
        self._model: Any = self.tokenizer.model

    def pretokens(self, text: str) -> list[str]:
        """Pre-tokens of a text in the byte alphabet."""
        if self.tokenizer.normalizer is not None:
            text = self.tokenizer.normalizer.normalize_str(text)
        return [word for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    def ids(self, pretoken: str) -> list[int]:
        """Base token ids of a pre-token."""
        return [token.id for token in self._model.tokenize(pretoken)]

    def surfaces(self, pretoken: str) -> list[str]:
        """Base token surfaces of a pre-token."""
        return [token.value for token in self._model.tokenize(pretoken)]


def count_pretokens(
    texts: Iterable[str], encoder: ByteLevelEncoder, rule: ScriptRule, normalise: Callable[[str], str]
) -> Counter[str]:
    """How often each pre-token with a character of the target scripts occurs."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(encoder.pretokens(normalise(text)))
    wanted: Counter[str] = Counter()
    for pretoken, count in found.items():
        if rule.letters(byte_surface(pretoken).decode("utf-8", errors="ignore")):
            wanted[pretoken] = count
    return wanted


def build_byte_segments(
    base: BaseTokenizer,
    encoder: ByteLevelEncoder,
    runs: Mapping[str, Counter[str]],
    weights: Mapping[str, float],
    damping: float,
) -> tuple[Segments, list[str]]:
    """Pre-tokens as symbols, see :func:`tsugiki.tokenizer.learning.segments.build_segments`.

    Raises:
        DataError: no pre-token at all.
    """
    surfaces = surfaces_of(base)
    symbols: list[int] = []
    counts: list[float] = []
    bounds = [0]
    for counter in runs.values():
        for pretoken, count in counter.items():
            ids = encoder.ids(pretoken)
            if len(ids) > 0:
                symbols += ids
                symbols.append(-1)
                counts += [count**damping] * (len(ids) + 1)
        bounds.append(len(symbols))
    if not symbols:
        raise DataError(
            "the sample holds no text in the scripts of the target languages",
            where="tokenizer.extend.languages",
            fix="check the language codes of corpus.sources",
        )
    segments = Segments(
        np.array(symbols, dtype=np.int32),
        np.array(counts, dtype=np.float32),
        np.array(bounds, dtype=np.int64),
        list(runs),
        dict(weights),
    )
    return segments, surfaces


def surfaces_of(base: BaseTokenizer) -> list[str]:
    """Surface of every base id; added tokens get one that no piece contains."""
    assert base.document is not None
    surfaces = [f"{_SPECIAL_SURFACE}{index}" for index in range(base.size)]
    for surface, index in base.document["model"]["vocab"].items():
        surfaces[index] = surface
    return surfaces


def byte_neighbours(
    encoder: ByteLevelEncoder, texts: Iterable[str], is_foreign: Callable[[str], bool]
) -> set[str]:
    """Concatenations of neighbouring base tokens in protected text, and whole pre-tokens of several tokens.

    A base with ``ignore_merges`` looks whole pre-tokens up first, so they must not become pieces either.
    """
    words: set[str] = set()
    for text in texts:
        words.update(encoder.pretokens(text))
    forbidden: set[str] = set()
    for word in words:
        if is_foreign(byte_surface(word).decode("utf-8", errors="ignore")):
            continue
        tokens = encoder.surfaces(word)
        if len(tokens) > 1:
            forbidden.add(word)
            forbidden.update(left + right for left, right in pairwise(tokens))
    return forbidden


class BytePieceJudge:
    """Decides about candidate pieces of a byte-level base.

    See :class:`tsugiki.tokenizer.learning.segments.PieceJudge`.
    """

    def __init__(
        self,
        encoder: ByteLevelEncoder,
        surfaces: Sequence[str],
        rules: Sequence[ScriptRule],
        forbidden: set[str],
        maximum_characters: int,
        guard: LatinGuard | None = None,
        is_foreign: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self._guard, self._is_foreign = guard, is_foreign
        self._encoder = encoder
        self._rules = [rule.matcher() for rule in rules]
        self._forbidden = forbidden
        self._maximum = maximum_characters
        self._surfaces = list(surfaces)
        self._rank: dict[tuple[str, str], int] = {}

    def __call__(self, surface: str, left: int, right: int) -> str | None:
        """None and the piece is counted as learned, or the reason to refuse it."""
        text = whole_characters(byte_surface(surface))
        if len(text) > self._maximum:
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


def whole_characters(data: bytes) -> str:
    """The complete characters in a piece of UTF-8, its broken ends left out."""
    start = 0
    while start < len(data) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:].decode("utf-8", errors="ignore")


def merged_document(base: BaseTokenizer, pieces: Sequence[LearnedPiece], final_size: int) -> dict[str, Any]:
    """The base's ``tokenizer.json`` with pieces, their merges and reserved rows appended."""
    assert base.document is not None
    surfaces = surfaces_of(base)
    model = dict(base.document["model"])
    vocabulary = dict(model["vocab"])
    # An added token that the vocabulary lacks would be numbered anew on loading, behind the new pieces.
    vocabulary |= {token["content"]: token["id"] for token in base.document.get("added_tokens") or []}
    merges = list(model["merges"])
    strings = bool(merges) and isinstance(merges[0], str)
    for piece in pieces:
        left, right = (surfaces[part] for part in piece.parts)
        vocabulary[piece.piece] = len(surfaces)
        surfaces.append(piece.piece)
        merges.append(f"{left} {right}" if strings else [left, right])
    number = 0
    while len(surfaces) < final_size:
        name = RESERVED.format(number)
        number += 1
        if name not in vocabulary:
            vocabulary[name] = len(surfaces)
            surfaces.append(name)
    model["vocab"], model["merges"] = vocabulary, merges
    return {**base.document, "model": model}


def write_byte_level(document: Mapping[str, Any], base: BaseTokenizer, output_dir: Path) -> None:
    """Write ``tokenizer.json`` and a ``tokenizer_config.json`` that loads it as it stands."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    (output_dir / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    file = base.directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("auto_map", "tokenizer_file", "vocab_file", "merges_file", "name_or_path", "backend"):
        config.pop(key, None)
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (output_dir / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        if (base.directory / name).is_file():
            (output_dir / name).write_bytes((base.directory / name).read_bytes())


def check_byte_level(inputs: GateInputs) -> list[Gate]:
    """All gates of a merged byte-level tokenizer; transformers takes the place of slow SentencePiece."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    assert inputs.base.document is not None
    base = ByteLevelEncoder(inputs.base.document)
    fast = Tokenizer.from_file(str(inputs.directory / "tokenizer.json"))
    document = json.loads((inputs.directory / "tokenizer.json").read_text(encoding="utf-8"))
    merged = ByteLevelEncoder(document)
    first = inputs.base.size
    missing = [piece for offset, piece in enumerate(inputs.pieces) if merged.ids(piece) != [first + offset]]

    def ids(tokenizer: Any, lines: Sequence[str]) -> list[list[int]]:
        return [item.ids for item in tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)]

    changed: list[str] = []
    skipped = checked = 0
    for name, lines in inputs.protected.items():
        kept = [line for line in lines if not inputs.is_foreign(line)]
        skipped += len(lines) - len(kept)
        checked += len(kept)
        for line, old, new in zip(kept, ids(base.tokenizer, kept), ids(fast, kept), strict=True):
            if old != new:
                changed.append(f"{name}: {line[:120]!r}")
    every = [line for lines in (*inputs.protected.values(), *inputs.lines.values()) for line in lines]
    encoded = ids(fast, every)
    before = base.tokenizer.decode_batch(ids(base.tokenizer, every), skip_special_tokens=False)
    after = fast.decode_batch(encoded, skip_special_tokens=False)
    lossy = [line[:200] for line, old, new in zip(every, before, after, strict=True) if old == line != new]
    failures, specials = _structure(inputs, fast)
    loading: list[str] = []
    differing: list[str] = []
    sample = every[:: max(1, len(every) // 2000)]
    try:
        auto = AutoTokenizer.from_pretrained(inputs.directory)
        if len(auto) != inputs.final_size:
            loading.append(f"len(tokenizer) is {len(auto)}, not {inputs.final_size}")
        differing = [
            line[:200]
            for line, ours in zip(sample, ids(fast, sample), strict=True)
            if auto.encode(line, add_special_tokens=False) != ours
        ]
    except Exception as error:  # whatever a loader raises is the finding
        loading.append(f"AutoTokenizer: {type(error).__name__}: {error}")
    note = f"{skipped} lines with characters of a target script are meant to change" if skipped else ""
    return [
        gate("reachable", len(inputs.pieces), missing),
        gate("protected", checked, changed, note),
        gate("slow_equals_fast", len(sample), differing, "transformers against tokenizers"),
        gate("lossless", len(every), lossy),
        gate("contiguous", inputs.final_size, failures),
        gate("specials", len(inputs.base.document.get("added_tokens") or []), specials),
        gate("loads", 1, loading),
    ]


def _structure(inputs: GateInputs, fast: Any) -> tuple[list[str], list[str]]:
    assert inputs.base.document is not None
    vocabulary: dict[str, int] = fast.get_vocab(with_added_tokens=True)
    failures = []
    if set(vocabulary.values()) != set(range(inputs.final_size)):
        failures.append(f"tokenizer.json has {len(vocabulary)} ids, not 0 to {inputs.final_size - 1}")
    failures += [
        f"base id {index} changed: {surface!r}"
        for surface, index in inputs.base.document["model"]["vocab"].items()
        if vocabulary.get(surface) != index
    ]
    specials = [
        f"{token['content']!r} is not id {token['id']}"
        for token in inputs.base.document.get("added_tokens") or []
        if vocabulary.get(token["content"]) != token["id"]
    ]
    return failures, specials
