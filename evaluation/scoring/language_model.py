"""A Hugging Face model directory as the evaluation sees it: text to ids, ids to log-probabilities.

The tokenizer is read from ``tokenizer.json`` (or ``tokenizer.model``) directly: ``AutoTokenizer`` rebuilds
some tokenizers from their class and then segments differently from what the model was trained with.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tsugiki.experiment.errors import CheckpointError, ConfigError, EnvironmentError_

if TYPE_CHECKING:
    import torch

DEFAULT_WINDOW = 4096


class TextCodec(Protocol):
    """Text to token ids and back, no special tokens added."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""


class _FastCodec:
    """``tokenizer.json``."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise CheckpointError("unreadable tokenizer", where=path, got=error) from error

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found


class _SentencePieceCodec:
    """``tokenizer.model``."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError("unreadable tokenizer", where=path, got=error) from error

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode(list(ids))
        return text

    def id_of(self, token: str) -> int | None:
        found: int = self._processor.piece_to_id(token)
        return None if found == self._processor.unk_id() else found


class _AutoCodec:
    """Any other tokenizer that transformers knows."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                "no tokenizer here",
                where=directory,
                got=str(error).splitlines()[0],
                expected="tokenizer.json, tokenizer.model or another tokenizer that transformers loads",
            ) from error

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.convert_tokens_to_ids(token)
        return None if found == self._tokenizer.unk_token_id else found


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        directory: where it was loaded from.
        codec: the tokenizer.
        start_id: token in front of every document: BOS, or EOS for models that have no BOS.
        stop_ids: tokens that end a generation.
        unknown_id: the unknown token, None when there is none.
        vocabulary_size: rows of the output matrix.
        max_positions: longest input, in tokens; None when the configuration does not say.
        network: the transformers model, in evaluation mode.
    """

    directory: Path
    codec: TextCodec
    start_id: int
    stop_ids: frozenset[int]
    unknown_id: int | None
    vocabulary_size: int
    max_positions: int | None
    network: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.network.device
        return device

    def logits(self, ids: torch.Tensor, first: int) -> torch.Tensor:
        """Logits for the positions from ``first`` on.

        Args:
            ids: token ids [B, S] padded on the right: a causal model never looks there.
            first: first position whose prediction is wanted; the output matrix is applied to no other.

        Returns:
            [B, S - first, V], position i predicting token first + i + 1.
        """
        import torch

        with torch.inference_mode():
            if self._keeps_logits:
                keep = torch.arange(first, ids.shape[1], device=ids.device)
                result: torch.Tensor = self.network(
                    input_ids=ids, use_cache=False, logits_to_keep=keep
                ).logits
                return result
            full: torch.Tensor = self.network(input_ids=ids, use_cache=False).logits
            return full[:, first:]

    @property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.network.forward).parameters


def load_language_model(
    directory: Path, *, dtype: str = "float32", device: str | None = None
) -> LanguageModel:
    """Load a Hugging Face model directory; nothing is downloaded.

    Args:
        directory: holds config.json, weights and tokenizer files.
        dtype: name of the torch dtype of the weights.
        device: torch device; None is the first GPU when there is one, else the CPU.

    Raises:
        CheckpointError: no such directory, unreadable, or tokenizer and weights do not fit each other.
        EnvironmentError_: the device does not exist.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    config = _read_config(directory)
    codec = _load_codec(directory)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            "cannot load the model", where=directory, got=str(error).splitlines()[0]
        ) from error
    try:
        network = network.to(target)
    except (RuntimeError, AssertionError) as error:
        raise EnvironmentError_(
            "the device cannot be used", where="evaluate.device", got=f"{target}: {error}"
        ) from error
    network.eval()
    special = _SpecialTokens(directory, codec, config)
    start = special.ids("bos_token")[:1] or special.ids("eos_token")[:1]
    if not start:
        raise CheckpointError(
            "the tokenizer has neither a BOS nor an EOS token to put in front of a document",
            where=directory,
            fix="set bos_token in tokenizer_config.json",
        )
    unknown = special.ids("unk_token")
    rows = int(network.get_output_embeddings().weight.shape[0])
    return LanguageModel(
        directory=directory,
        codec=codec,
        start_id=start[0],
        stop_ids=frozenset(special.ids("eos_token")),
        unknown_id=unknown[0] if unknown else None,
        vocabulary_size=rows,
        max_positions=_text_config(config).get("max_position_embeddings"),
        network=network,
    )


def common_window(directories: Sequence[Path], configured: int | None) -> int:
    """Tokens per window that the models in all of the directories can read.

    Raises:
        ConfigError: the configured length is beyond a model's positions.
        CheckpointError: a directory holds no model.
    """
    window = DEFAULT_WINDOW if configured is None else configured
    for directory in directories:
        limit = _text_config(_read_config(directory)).get("max_position_embeddings")
        if limit is None or window <= limit:
            continue
        if configured is not None:
            raise ConfigError(
                "longer than the model can read",
                where="evaluate.sequence_length",
                got=configured,
                expected=f"at most max_position_embeddings = {limit} of {directory}",
            )
        window = limit
    return window


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            "no Hugging Face model here", where=directory, expected="config.json, weights and tokenizer files"
        ) from None
    except ValueError as error:
        raise CheckpointError("unreadable model configuration", where=path, got=error) from error
    return config


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a multimodal configuration."""
    nested: dict[str, Any] = config.get("text_config", config)
    return nested


def _load_codec(directory: Path) -> Any:
    if (directory / "tokenizer.json").is_file():
        return _FastCodec(directory / "tokenizer.json")
    if (directory / "tokenizer.model").is_file():
        return _SentencePieceCodec(directory / "tokenizer.model")
    return _AutoCodec(directory)


class _SpecialTokens:
    """Ids of special tokens: by ``tokenizer_config.json`` where it speaks, else by ``config.json``."""

    def __init__(self, directory: Path, codec: Any, config: dict[str, Any]) -> None:
        path = directory / "tokenizer_config.json"
        self._declared: dict[str, Any] = (
            json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        )
        self._codec = codec
        self._config = config

    def ids(self, name: str) -> list[int]:
        """Ids of ``bos_token``, ``eos_token`` or ``unk_token``; empty when the model has none."""
        if name in self._declared:
            token = self._declared[name]
            if isinstance(token, dict):
                token = token.get("content")
            found = None if token is None else self._codec.id_of(token)
            return [] if found is None else [found]
        listed = self._config.get(f"{name}_id")
        if listed is None:
            return []
        return [int(item) for item in listed] if isinstance(listed, list) else [int(listed)]
