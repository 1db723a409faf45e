"""A tokenizer as llama.cpp reads it from a GGUF file.

SentencePiece models (``llama``): surfaces, scores and kinds of the pieces, bytes and dummy prefix among them.
Byte-level BPE (``gpt2``): surfaces in GPT-2's byte alphabet, merges, and the name of the rule that cuts text first.
llama.cpp knows no normalisation: a tokenizer that needs one is refused, but for NFC, which leaves nearly all text as it
is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError
from tsugiki.experiment.files import read_json
from tsugiki.experiment.text.hf_tokenizer import SPACE, load_sentencepiece_proto
from tsugiki.experiment.text.tokenizer_files import OpenedTokenizer, open_tokenizer
from tsugiki.experiment.text.tokenizer_settings import merge_pair
from tsugiki.pretrain.conversion.gguf.pre_tokenizers import KNOWN, is_byte_level, pre_tokenizer_name

# Kinds of tokens (gguf.TokenType), which are those of SentencePiece.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_NFC_NOTE = "text that is not in NFC is not normalised by llama.cpp: give it NFC"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about a tokenizer.

    Attributes:
        model: ``llama`` (SentencePiece) or ``gpt2`` (byte level).
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: surfaces by id.
        types: kinds by id.
        scores: of the pieces, for SentencePiece.
        merges: ``left right``, best first, for byte level.
        space_prefix: whether a text gets a space in front.
        adds_bos: whether a text gets a begin-of-sequence token in front when it is given to the model.
        ids: special tokens, by the names of GGUF: ``bos``, ``eos``, ``unknown``, ``padding``, ``eot``.
        chat_template: Jinja, or None.
        notes: what differs from transformers for some texts.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    space_prefix: bool
    adds_bos: bool
    ids: dict[str, int]
    chat_template: str | None
    notes: tuple[str, ...] = field(default=())


def read_vocabulary(directory: Path, rows: int, pre: str | None = None) -> Vocabulary:
    """The tokenizer of a Hugging Face directory.

    Args:
        directory: with ``tokenizer.json`` or ``tokenizer.model``.
        rows: of the embedding matrix.
        pre: llama.cpp's name of the pre-tokenizer, for a byte-level tokenizer that is not recognised.

    Raises:
        ConfigError: a tokenizer that llama.cpp has no form for.
        CheckpointError: more rows than ids: padding that was not trimmed.
        DataError: unreadable, or an id without a token.
    """
    opened = open_tokenizer(directory)
    document = opened.document
    if document is None or document["model"].get("type") != "BPE":
        raise ConfigError(
            "llama.cpp has no form of this tokenizer",
            where=opened.file,
            got=(document or {}).get("model", {}).get("type", "a tokenizer that runs in Python"),
            expected="a BPE model: SentencePiece, or byte level",
        )
    _require_size(opened, rows)
    surfaces, special = _surfaces(opened)
    settings: dict[str, Any] = {
        "adds_bos": _adds_bos(opened),
        "ids": _special_ids(opened),
        "chat_template": chat_template(directory),
    }
    if is_byte_level(document):
        types = [_kind(_NORMAL, index, special) for index in range(rows)]
        merges = [" ".join(merge_pair(merge)) for merge in document["model"]["merges"]]
        notes = (_NFC_NOTE,) if _normalisation(document, opened.file) == "NFC" else ()
        return Vocabulary(
            model="gpt2", pre=pre or _recognised(document, opened.file), tokens=surfaces, types=types, scores=None,
            merges=merges, space_prefix=False, notes=notes, **settings,
        )  # fmt: skip
    return _sentencepiece(opened, surfaces, special, settings)


def chat_template(directory: Path) -> str | None:
    """The Jinja chat template of a Hugging Face directory; what transformers alone knows is written otherwise.

    ``{% generation %}``, which marks what counts in the loss, becomes a condition that always holds.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        found: Any = path.read_text(encoding="utf-8")
    else:
        file = directory / "tokenizer_config.json"
        found = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(found, list):
        found = next((item.get("template") for item in found if item.get("name") == "default"), None)
    if not isinstance(found, str):
        return None
    found = re.sub(r"({%[-+]?\s*)generation(\s*[-+]?%})", r"\1if true\2", found)
    return re.sub(r"({%[-+]?\s*)endgeneration(\s*[-+]?%})", r"\1endif\2", found)


def _require_size(opened: OpenedTokenizer, rows: int) -> None:
    if opened.size < rows:
        raise CheckpointError(
            "the matrices have rows that no id of the tokenizer stands for",
            where=opened.directory,
            got=f"{rows} rows, {opened.size} ids",
            expected="as many rows as ids",
            fix="trim the padding: tsugiki convert import --trim-padding-rows, then tsugiki convert export",
        )
    if opened.size > rows:
        raise DataError(
            "the tokenizer has ids that the matrices have no row for",
            where=opened.file,
            got=f"{opened.size} ids, {rows} rows",
            fix="take the tokenizer that the model was trained with",
        )


def _surfaces(opened: OpenedTokenizer) -> tuple[list[str], dict[int, bool]]:
    """Surfaces by id, and which added tokens are special."""
    added = opened.fast.get_added_tokens_decoder()
    by_id = {index: surface for surface, index in opened.fast.get_vocab(with_added_tokens=True).items()}
    holes = [index for index in range(opened.size) if index not in by_id]
    if holes:
        raise DataError(
            f"{len(holes)} ids of the tokenizer have no token",
            where=opened.file,
            got=f"nothing at {', '.join(map(str, holes[:8]))}",
            expected="a token for every id up to the last",
            fix="add unused tokens there: llama.cpp numbers tokens by their place",
        )
    return [by_id[index] for index in range(opened.size)], {
        index: token.special for index, token in added.items()
    }


def _kind(kind: int, index: int, special: Mapping[int, bool]) -> int:
    """Added tokens are found in text before anything else; special ones are not shown."""
    if index not in special or kind not in (_NORMAL, _USER_DEFINED, _CONTROL):
        return kind
    return _CONTROL if special[index] else _USER_DEFINED


def _sentencepiece(
    opened: OpenedTokenizer, surfaces: Sequence[str], special: Mapping[int, bool], settings: dict[str, Any]
) -> Vocabulary:
    path = opened.directory / "tokenizer.model"
    if not path.is_file():
        raise ConfigError(
            "llama.cpp needs the scores of the SentencePiece model",
            where=opened.directory,
            got=f"{opened.file.name} alone",
            expected="tokenizer.model beside it",
            fix="take tokenizer.model from the release of the base model, or from the run's tokenizer folder",
        )
    proto = load_sentencepiece_proto(path)
    pieces = [piece.piece for piece in proto.pieces]
    if pieces != list(surfaces):
        pairs = zip([*pieces, "nothing"], [*surfaces, "nothing"], strict=False)
        index, pair = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        raise DataError(
            "tokenizer.json and tokenizer.model disagree",
            where=opened.directory,
            got=f"id {index} is {pair[1]!r} in tokenizer.json and {pair[0]!r} in tokenizer.model",
            fix="take both from the same release; tokens that were added to one must be in the other",
        )
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        raise _refused_normalisation(path, spec.name or "remove_extra_whitespaces")
    types = [_kind(piece.type, index, special) for index, piece in enumerate(proto.pieces)]
    # Looked for in text as it comes in, in which a space is a space.
    tokens = [
        text.replace(SPACE, " ") if kind == _USER_DEFINED else text
        for text, kind in zip(pieces, types, strict=True)
    ]
    return Vocabulary(
        model="llama", pre="default", tokens=tokens, types=types, scores=[piece.score for piece in proto.pieces],
        merges=None, space_prefix=opened.fast.encode("x", add_special_tokens=False).tokens[0].startswith(SPACE),
        **settings,
    )  # fmt: skip


def _normalisation(document: Mapping[str, Any], where: Path) -> str | None:
    """The name of a byte-level tokenizer's normalisation."""
    rule = document.get("normalizer") or {}
    if rule.get("type") == "Sequence" and len(rule.get("normalizers", [])) == 1:
        rule = rule["normalizers"][0]
    kind: str | None = rule.get("type")
    if kind in (None, "NFC") or (kind == "Sequence" and not rule.get("normalizers")):
        return kind
    raise _refused_normalisation(where, str(kind))


def _refused_normalisation(where: Path, got: str) -> ConfigError:
    return ConfigError(
        "llama.cpp does not know the normalisation of this tokenizer, and would cut text otherwise",
        where=where, got=got, expected="none, or NFC for byte-level tokenizers",
        fix="serve the model with transformers or vLLM (docs/serving.md)",
    )  # fmt: skip


def _recognised(document: Mapping[str, Any], where: Path) -> str:
    name = pre_tokenizer_name(document)
    if name is None:
        raise ConfigError(
            "llama.cpp has no pre-tokenizer of this rule that is known here",
            where=where,
            got=str(document.get("pre_tokenizer"))[:300],
            expected=f"one of {', '.join(KNOWN)}",
            fix="say --pre-tokenizer NAME if llama.cpp has it, and check with tsugiki convert verify-gguf",
        )
    return name


def _adds_bos(opened: OpenedTokenizer) -> bool:
    ids: list[int] = opened.fast.encode("x").ids
    return opened.bos_id is not None and ids[:1] == [opened.bos_id]


def _special_ids(opened: OpenedTokenizer) -> dict[str, int]:
    found = {"bos": opened.bos_id, "eos": opened.eos_id, "unknown": opened.unknown_id}
    named = opened.settings.get("pad_token")
    name = named.get("content") if isinstance(named, dict) else named
    found["padding"] = opened.id_of(name) if isinstance(name, str) else None
    path = opened.directory / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    others = [end for end in (ends if isinstance(ends, list) else [ends]) if end not in (None, opened.eos_id)]
    # What ends a turn where that is another token than what ends a document.
    found["eot"] = others[0] if others else None
    ids = {key: int(value) for key, value in found.items() if value is not None}
    if beyond := {key: value for key, value in ids.items() if not 0 <= value < opened.size}:
        raise DataError(
            "a special token is none of the vocabulary",
            where=path,
            got=beyond,
            expected=f"ids below {opened.size}",
            fix="take generation_config.json from the release of the model that the tokenizer belongs to",
        )
    return ids
