"""A Hugging Face model directory as the evaluation sees it: text to ids, ids to log-probabilities.

The tokenizer is the one that training encoded with, see :mod:`tsugiki.experiment.text.tokenizer_files`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.errors import CheckpointError, ConfigError, EnvironmentError_
from tsugiki.experiment.text.tokenizer_files import OpenedTokenizer, open_tokenizer

if TYPE_CHECKING:
    import torch

DEFAULT_WINDOW = 4096


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        directory: where it was loaded from.
        tokenizer: its tokenizer.
        start_id: token in front of every document: BOS, or EOS for models that have no BOS.
        stop_ids: tokens that end a generation.
        unknown_id: the unknown token, None when there is none.
        vocabulary_size: rows of the output matrix.
        max_positions: longest input, in tokens; None when the configuration does not say.
        model: the transformers model, in evaluation mode.
    """

    directory: Path
    tokenizer: OpenedTokenizer
    start_id: int
    stop_ids: frozenset[int]
    unknown_id: int | None
    vocabulary_size: int
    max_positions: int | None
    model: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
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
                result: torch.Tensor = self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
                return result
            full: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
            return full[:, first:]

    def hidden_states(self, ids: torch.Tensor) -> torch.Tensor:
        """What the output matrix is applied to, for models that :attr:`output_weight` says have one.

        Args:
            ids: token ids [B, S] padded on the right.

        Returns:
            [B, S, h].
        """
        import torch

        with torch.inference_mode():
            hidden: torch.Tensor = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            return hidden

    def output_weight(self) -> torch.Tensor | None:
        """The output matrix [V, h] where logits are its product with the hidden states and nothing else.

        None where a model does more (a bias, a scale, a soft cap, heads of another kind): found by watching
        its output layer over a few tokens, since transformers has no name for it.
        """
        import torch

        layer = self.model.get_output_embeddings()
        if type(layer) is not torch.nn.Linear or layer.bias is not None:
            return None
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda _, given, output: seen.extend([given[0], output]))
        ids = torch.arange(min(8, self.vocabulary_size), device=self.device)[None]
        try:
            logits = self.logits(ids, 0)
            hidden = self.hidden_states(ids)
        except (AttributeError, TypeError):
            return None
        finally:
            hook.remove()
        same = len(seen) == 2 and torch.equal(seen[0], hidden) and torch.equal(seen[1].to(logits), logits)
        return layer.weight.detach() if same else None

    @property
    def reads_by_length(self) -> bool:
        """Whether positions are scaled by the length of the input, so that it matters what is in a batch."""
        settings = _text_config(self.model.config.to_dict())
        scaling = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        return kind in ("dynamic", "longrope")

    @property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters


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
        DataError: a tokenizer that cannot be read.
        EnvironmentError_: the device does not exist.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    config = _read_config(directory)
    tokenizer = open_tokenizer(directory, special_tokens_in_text=False)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            "cannot load the model", where=directory, got=str(error).splitlines()[0]
        ) from error
    try:
        model = model.to(target)
    except (RuntimeError, AssertionError) as error:
        raise EnvironmentError_(
            "the device cannot be used", where="evaluate.device", got=f"{target}: {error}"
        ) from error
    model.eval()
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if start is None:
        raise CheckpointError(
            "the tokenizer has neither a BOS nor an EOS token to put in front of a document",
            where=directory,
            fix="set bos_token in tokenizer_config.json",
        )
    rows = int(model.get_output_embeddings().weight.shape[0])
    return LanguageModel(
        directory=directory,
        tokenizer=tokenizer,
        start_id=start,
        stop_ids=frozenset(tokenizer.eos_ids),
        unknown_id=tokenizer.unknown_id,
        vocabulary_size=rows,
        max_positions=_text_config(config).get("max_position_embeddings"),
        model=model,
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
