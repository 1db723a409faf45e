"""The tokenizer of a directory or file, opened in one way for every stage.

Which file counts: ``tokenizer.json``, read as it stands; else ``tokenizer.model``; else whatever transformers makes of
the directory. ``AutoTokenizer`` comes last because it rebuilds some tokenizers from their class, which then segment
differently from what the model was trained with (a bare ``tokenizer.model`` loses its dummy prefix).

Which tokens begin and end a sequence, as transformers decides where it decides:

1. ``special_tokens_map.json``, unless ``tokenizer_config.json`` has an ``added_tokens_decoder``, as it does since
   transformers 4.34;
2. ``tokenizer_config.json``; a token that it sets to null is one that the tokenizer does not have;
3. the SentencePiece model's own, where it is the only file;
4. ``config.json``: the ids that the model generates with.

A token that 1 or 2 name and the vocabulary lacks is an error: transformers would give it an id behind the vocabulary,
for which the model has no row.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.text.hf_tokenizer import load_sentencepiece_proto, read_json, tokenizer_document

JSON_NAME, MODEL_NAME = "tokenizer.json", "tokenizer.model"
_AGAIN = "download the file again (a Git LFS pointer or an HTML error page is a frequent cause)"
_FORMS = "a Hugging Face directory, a tokenizer.json or a SentencePiece .model file"
_MARK = re.compile(r"<[|｜][^<>]+[|｜]>|</?s>|<(?:unk|pad|mask|bos|eos)>|<(?:start|end)_of_turn>|\[/?INST\]")
"""Added tokens that make turns; some releases do not call them special."""
SpecialName = Literal["bos", "eos", "unk"]


class _Engine(Protocol):
    """What segments text."""

    size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""

    def id_of(self, token: str) -> int | None:
        """Id of a token by its surface; None where there is no such token."""

    def read_special_tokens_as_text(self) -> None:
        """From now on ``</s>`` in a text is text."""


class OpenedTokenizer:
    """A tokenizer, made by :func:`open_tokenizer`.

    Text is never cut to a length nor padded, whatever the file asks for.

    Attributes:
        file: what it was read from; the directory for a tokenizer that only transformers can open.
        directory: where its settings lie.
        document: content of the ``tokenizer.json``, that of the file or one made from the SentencePiece model; None
            for a SentencePiece model other than BPE and for what transformers opens.
    """

    def __init__(self, file: Path, engine: _Engine, document: dict[str, Any] | None = None) -> None:
        self.file = file
        self.directory = file if file.is_dir() else file.parent
        self.document = document
        self._engine = engine

    @property
    def size(self) -> int:
        """One more than the largest id, added tokens included."""
        return self._engine.size

    @property
    def fast(self) -> Any:
        """The ``tokenizers.Tokenizer``.

        Raises:
            DataError: a SentencePiece model other than BPE, or a tokenizer that transformers runs in Python.
        """
        if isinstance(self._engine, _Fast):
            return self._engine.tokenizer
        raise DataError("this tokenizer has no fast form", where=self.file, expected=JSON_NAME)

    def encode(self, text: str) -> list[int]:
        """Ids of a text: no token is put around it; a special token that stands in it is read as that token."""
        return self._engine.encode([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text, as :meth:`encode` gives them."""
        return self._engine.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._engine.decode(ids)

    def id_of(self, token: str) -> int | None:
        """Id of a token by its surface; None where the vocabulary has no such token."""
        return self._engine.id_of(token)

    def surface(self, index: int) -> str:
        """A token as the vocabulary writes it.

        Raises:
            DataError: see :attr:`fast`.
        """
        found: str = self.fast.id_to_token(index)
        return found

    @cached_property
    def bos_id(self) -> int | None:
        """Begin of sequence; None where the tokenizer has none.

        Raises:
            DataError: the settings name a token that the vocabulary lacks.
        """
        return next(iter(self._special("bos")), None)

    @cached_property
    def eos_id(self) -> int | None:
        """End of sequence; None where the tokenizer has none.

        Raises:
            DataError: the settings name a token that the vocabulary lacks.
        """
        return next(iter(self._special("eos")), None)

    @property
    def eos_ids(self) -> list[int]:
        """All ids that end a sequence: ``config.json`` may list several."""
        return self._special("eos")

    @property
    def unknown_id(self) -> int | None:
        """The unknown token; None where there is none."""
        name, _ = self._named("unk")
        return self.id_of(name) if name is not None else next(iter(self._special("unk")), None)

    def require_eos(self, purpose: str) -> int:
        """Id of the end-of-sequence token.

        Args:
            purpose: what it is needed for, for the message: ``to end documents with``.

        Raises:
            DataError: the tokenizer has none, or names one that the vocabulary lacks.
        """
        if self.eos_id is None:
            raise DataError(
                f"the tokenizer has no end-of-sequence token {purpose}",
                where=self.directory / "tokenizer_config.json",
                got="no eos_token",
                expected="eos_token naming a token of the vocabulary",
            )
        return self.eos_id

    @cached_property
    def settings(self) -> dict[str, Any]:
        """``tokenizer_config.json``, the tokens of a ``special_tokens_map.json`` that counts put in.

        Raises:
            DataError: one of them is not a JSON object.
        """
        settings = read_json(self.directory / "tokenizer_config.json") or {}
        if "added_tokens_decoder" not in settings:
            settings |= read_json(self.directory / "special_tokens_map.json") or {}
        return settings

    def _named(self, name: SpecialName) -> tuple[str | None, bool]:
        """The token that the settings name, and whether they speak of it."""
        token = self.settings.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        return (content if isinstance(content, str) else None), f"{name}_token" in self.settings

    def _special(self, name: SpecialName) -> list[int]:
        content, spoken = self._named(name)
        if content is not None:
            found = self.id_of(content)
            if found is None:
                raise DataError(
                    f"{name}_token names no token of the vocabulary",
                    where=self.directory / "tokenizer_config.json",
                    got=content,
                    expected=f"a token among the {self.size:,} of {self.file.name}",
                    fix="take all files of the tokenizer from the same release of the model",
                )
            return [found]
        if spoken:
            return []
        own = getattr(self._engine, "special_ids", {}).get(name)
        if own is not None:
            return [own]
        listed = (read_json(self.directory / "config.json") or {}).get(f"{name}_token_id")
        ids = listed if isinstance(listed, list) else [listed]
        return [int(item) for item in ids if item is not None]


def open_tokenizer(path: Path, *, special_tokens_in_text: bool = True) -> OpenedTokenizer:
    """Open the tokenizer of a Hugging Face directory, of a ``tokenizer.json`` or of a SentencePiece model file.

    Args:
        path: the directory or file.
        special_tokens_in_text: whether ``</s>`` within a text is read as that token, as transformers does; else it is
            text like any other, and so is what looks like a mark of a conversation (``<|user|>``) where the file
            does not call it special. Documents, prompts and messages are read so: only templates make control ids.

    Raises:
        DataError: nothing there, or a corrupt file.
    """
    if not path.exists():
        raise DataError("no tokenizer here", where=path, expected=_FORMS)
    file = _file(path)
    document = None
    if file is None:
        engine: _Engine = _through_transformers(path)
    elif file.suffix == ".json":
        document = read_tokenizer_json(file)
        assert document is not None
        engine = _Fast(document, file)
    else:
        engine, document = _through_sentencepiece(file)
    if not special_tokens_in_text:
        engine.read_special_tokens_as_text()
    return OpenedTokenizer(file or path, engine, document)


def tokenizer_size(path: Path) -> int:
    """Number of ids of a tokenizer directory or file, added tokens included, without opening it where possible.

    Raises:
        DataError: no tokenizer there.
    """
    file = _file(path) if path.exists() else None
    if file is None:
        raise DataError("no tokenizer here", where=path, expected=f"{JSON_NAME} or {MODEL_NAME}")
    if file.suffix != ".json":
        return _sentencepiece(file).get_piece_size()
    document = read_tokenizer_json(file)
    assert document is not None
    try:
        return _count(document)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _corrupt(file, error) from error


def _count(document: Mapping[str, Any]) -> int:
    vocabulary: Any = document["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [surface, score] in the order of the ids
        vocabulary = {surface: index for index, (surface, _) in enumerate(vocabulary)}
    added = (token["content"] for token in document.get("added_tokens") or [])
    # The library numbers an added token that the vocabulary lacks anew, behind it, whatever id the file gives.
    fresh = dict.fromkeys(content for content in added if content not in vocabulary)
    return 1 + max(map(operator.index, vocabulary.values()), default=-1) + len(fresh)


def read_tokenizer_json(path: Path) -> dict[str, Any] | None:
    """The content of a ``tokenizer.json``, or None where there is none.

    Raises:
        DataError: the file is corrupt.
    """
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        document["model"]["vocab"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _corrupt(path, error) from error
    return dict(document)


def _corrupt(path: Path, error: Exception) -> DataError:
    return DataError("corrupt tokenizer.json", where=path, got=f"{type(error).__name__}: {error}", fix=_AGAIN)


def _file(path: Path) -> Path | None:
    """The file that counts; None where only transformers can know."""
    if path.is_file():
        return path
    return next((path / name for name in (JSON_NAME, MODEL_NAME) if (path / name).is_file()), None)


class _Fast:
    """A ``tokenizer.json``."""

    def __init__(
        self, document: Mapping[str, Any], where: Path, special_ids: Mapping[str, int] | None = None
    ) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer: Any = Tokenizer.from_str(json.dumps(document))
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError("unreadable tokenizer", where=where, got=error) from error
        self.special_ids = dict(special_ids or {})
        # What a file says about lengths is for batches of a fixed size, as transformers takes it.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) == 1:
            return [self.tokenizer.encode(texts[0], add_special_tokens=False).ids]
        return [item.ids for item in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token)
        return found

    def read_special_tokens_as_text(self) -> None:
        self.tokenizer.encode_special_tokens = True
        added = self.tokenizer.get_added_tokens_decoder().values()
        marks = [token for token in added if not token.special and _MARK.fullmatch(token.content)]
        for token in marks:
            token.special = True
        if marks:
            self.tokenizer.add_special_tokens(marks)


class _SentencePiece:
    """A SentencePiece model other than BPE, which no ``tokenizer.json`` of ours describes."""

    def __init__(self, file: Path) -> None:
        self._processor = _sentencepiece(file)
        self.size = int(self._processor.get_piece_size())
        names = ("bos", "eos", "unk")
        ids = (self._processor.bos_id(), self._processor.eos_id(), self._processor.unk_id())
        self.special_ids = {name: index for name, index in zip(names, ids, strict=True) if index >= 0}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(list(texts))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode(list(ids))
        return text

    def id_of(self, token: str) -> int | None:
        found: int = self._processor.piece_to_id(token)
        missing = found == self._processor.unk_id() and self._processor.id_to_piece(found) != token
        return None if missing else found

    def read_special_tokens_as_text(self) -> None:
        """SentencePiece never reads them otherwise."""


class _Transformers:
    """A tokenizer that transformers runs in Python."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._as_text = False
        self.size = len(tokenizer)
        self.special_ids = _declared(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=self._as_text)
            for text in texts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.convert_tokens_to_ids(token)
        missing = found == self._tokenizer.unk_token_id and token != self._tokenizer.unk_token
        return None if missing else found

    def read_special_tokens_as_text(self) -> None:
        self._as_text = True


def _through_transformers(directory: Path) -> _Engine:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever a damaged file leads to there
        raise DataError(
            "no tokenizer here",
            where=directory,
            got=(str(error) or type(error).__name__).splitlines()[0],
            expected=f"{JSON_NAME}, {MODEL_NAME} or another tokenizer that transformers loads",
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _Transformers(tokenizer)
    return _Fast(json.loads(backend.to_str()), directory, _declared(tokenizer))


def _declared(tokenizer: Any) -> dict[str, int]:
    names = ("bos", "eos", "unk")
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in names}
    return {name: index for name, index in found.items() if index is not None}


def _through_sentencepiece(file: Path) -> tuple[_Engine, dict[str, Any] | None]:
    try:
        proto = load_sentencepiece_proto(file)
    except ConfigError:  # not BPE
        return _SentencePiece(file), None
    document, spec = tokenizer_document(proto), proto.trainer_spec
    ids = {"bos": spec.bos_id, "eos": spec.eos_id, "unk": spec.unk_id}
    present = {name: index for name, index in ids.items() if 0 <= index < len(proto.pieces)}
    return _Fast(document, file, present), document


def _sentencepiece(file: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise DataError("corrupt SentencePiece model", where=file, got=error, fix=_AGAIN) from error
