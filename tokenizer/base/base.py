"""The base tokenizer as the vocabulary stage sees it: a SentencePiece BPE model or a byte-level BPE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.text.hf_tokenizer import SPACE, load_sentencepiece_proto
from tsugiki.experiment.text.tokenizer_files import JSON_NAME, MODEL_NAME, read_tokenizer_json

Kind = Literal["sentencepiece", "byte_level"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""``ModelProto.SentencePiece.Type``."""


@dataclass
class BaseTokenizer:
    """A loaded base.

    Attributes:
        kind: ``sentencepiece`` or ``byte_level``.
        directory: the Hugging Face directory.
        size: ids in use, added tokens included; new ids start here.
        proto: the SentencePiece model, for ``sentencepiece``.
        document: the content of ``tokenizer.json``, where there is one.
    """

    kind: Kind
    directory: Path
    size: int
    proto: Any = None
    document: dict[str, Any] | None = None
    _exact: Any = field(default=None, repr=False)

    def exact_processor(self) -> Any:
        """SentencePiece processor without dummy prefix and whitespace removal: surfaces as they are.

        With the dummy prefix, a piece encoded alone to find its parts gains a ``▁`` that it does not have.
        """
        if self._exact is None:
            self._exact = exact_processor(self.proto)
        return self._exact

    def parts(self, pieces: Sequence[str]) -> list[list[int]]:
        """Base token ids of pieces (``▁`` for spaces), encoded without dummy prefix."""
        texts = [piece.replace(SPACE, " ") for piece in pieces]
        encoded: list[list[int]] = self.exact_processor().encode(texts, out_type=int)
        return encoded


def exact_processor(proto: Any) -> Any:
    """A processor of a model with its normaliser switched off; see :meth:`BaseTokenizer.exact_processor`."""
    import sentencepiece

    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.normalizer_spec.add_dummy_prefix = False
    copy.normalizer_spec.remove_extra_whitespaces = False
    copy.normalizer_spec.name = "identity"
    copy.normalizer_spec.precompiled_charsmap = b""
    return sentencepiece.SentencePieceProcessor(model_proto=copy.SerializeToString())


def load_base(directory: Path) -> BaseTokenizer:
    """Load the tokenizer of a Hugging Face directory.

    Raises:
        DataError: no tokenizer there, or a corrupt one.
        ConfigError: a tokenizer that cannot be extended by merges (Unigram, WordPiece).
    """
    document = read_tokenizer_json(directory / JSON_NAME)
    model_file = directory / MODEL_NAME
    kind = (document or {}).get("model", {}).get("type")
    if kind is not None and kind != "BPE":
        raise ConfigError(
            f"the base tokenizer is a {kind} model, which cannot be extended by merges",
            where=directory / JSON_NAME,
            got=kind,
            expected="a BPE model (Llama, Mistral, Yi, Gemma, Qwen, SmolLM)",
            fix="an added Unigram piece changes the segmentation of old text whatever its score: keep the "
            "vocabulary (tokenizer.extend=null) or take a BPE base",
        )
    if model_file.is_file():
        proto = load_sentencepiece_proto(model_file)
        size = max([len(proto.pieces), *(index + 1 for index in _ids(document))])
        return BaseTokenizer("sentencepiece", directory, size, proto, document)
    if document is None:
        raise DataError(
            "the base model has no tokenizer",
            where=directory,
            expected="tokenizer.model (SentencePiece) or tokenizer.json (byte-level BPE)",
            fix="point base.path at a whole Hugging Face model directory",
        )
    if not is_byte_level(document):
        raise ConfigError(
            "the base has a SentencePiece-like tokenizer.json but no tokenizer.model",
            where=directory,
            fix="copy tokenizer.model of the same release beside it",
        )
    return BaseTokenizer("byte_level", directory, max(_ids(document)) + 1, None, document)


def _ids(document: dict[str, Any] | None) -> list[int]:
    if document is None:
        return []
    added = [int(token["id"]) for token in document.get("added_tokens") or []]
    return [*document["model"]["vocab"].values(), *added]


def is_byte_level(document: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is a byte-level BPE (GPT-2 byte alphabet)."""

    def has(part: Any) -> bool:
        if isinstance(part, dict):
            return part.get("type") == "ByteLevel" or any(has(value) for value in part.values())
        return isinstance(part, list) and any(has(item) for item in part)

    return has(document.get("pre_tokenizer")) or has(document.get("decoder"))
