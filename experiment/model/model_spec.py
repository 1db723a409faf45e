"""What a decoder-only model is, independent of the framework that runs it.

:class:`ModelSpec` is read from a Hugging Face ``config.json`` and written as ``model.json`` beside
every Megatron checkpoint; building the Megatron model, converting weights and planning memory all
start from it. Nothing about an architecture is assumed elsewhere: rope base and scaling, head
width, grouped queries, sliding window, biases and tied embeddings are all fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.model.family import ROPE_TYPES, family_names, spec_fields

SPEC_NAME = "model.json"


class ModelSpec(StrictModel):
    """Architecture of a dense decoder-only transformer with rotary positions and RMSNorm."""

    family: str
    """A model family (:mod:`tsugiki.experiment.model.family`): decides the weight table and the exported config."""
    layers: int = Field(gt=0, le=10_000)
    """Transformer layers."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    ffn_size: int = Field(gt=0)
    """Width of the gated feed-forward layer (of the gate, and of the up projection)."""
    heads: int = Field(gt=0)
    """Query heads."""
    kv_heads: int = Field(gt=0)
    """Key/value heads; equal to heads without grouped queries, 1 for multi-query attention."""
    head_dim: int = Field(gt=0)
    """Width of one head; not always hidden_size / heads."""
    vocabulary_size: int = Field(gt=0)
    """Rows of the embedding as in the tokenizer; padding for tensor parallelism is not part of it."""
    max_positions: int = Field(gt=0)
    """Longest sequence the model was made for, in tokens."""
    norm_epsilon: float = Field(default=1e-6, gt=0)
    """Epsilon of RMSNorm."""
    norm_offset: float = 0.0
    """Added to the RMSNorm weight before it multiplies: 1.0 for Gemma."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Activation of the gate: SwiGLU or tanh-approximated GeGLU."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """Scaling of the rotary frequencies as transformers names it (rope_type, factor, ...)."""
    sliding_window: int | None = Field(default=None, gt=0)
    """Tokens a position may look back at, itself included; null for full causal attention."""
    tied_embeddings: bool = False
    """The output layer uses the input embedding matrix."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Multiplies the input embeddings: sqrt(hidden_size) for Gemma."""
    qkv_bias: bool = False
    """Query, key and value projections have a bias."""
    output_bias: bool = False
    """The attention output projection has a bias."""
    mlp_bias: bool = False
    """The feed-forward projections have a bias."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads}): "
                "each key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions pair dimensions")
        if self.rope_scaling is not None and self.rope_scaling.get("rope_type") not in ROPE_TYPES:
            raise ValueError(f"rope_scaling.rope_type must be one of {', '.join(ROPE_TYPES)}")
        if self.family not in (known := family_names()):
            raise ValueError(f"family {self.family!r} must be one of {', '.join(known)}")
        return self

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's matrices, which every token is multiplied with: biases and norms left out."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden_size * (2 * queries + 2 * keys) + 3 * self.hidden_size * self.ffn_size

    @property
    def parameters(self) -> int:
        """Number of weights, tied embeddings counted once."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = (queries + 2 * keys) * self.qkv_bias + self.hidden_size * self.output_bias
        biases += (2 * self.ffn_size + self.hidden_size) * self.mlp_bias
        matrices = 1 if self.tied_embeddings else 2
        return (
            matrices * self.vocabulary_size * self.hidden_size
            + self.layers * (self.layer_weights + biases + 2 * self.hidden_size)
            + self.hidden_size
        )

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | Path | str, where: object = "config.json") -> ModelSpec:
        """Read the architecture of a Hugging Face model.

        Args:
            source: the contents of ``config.json``, that file, or the directory that holds it.
            where: what messages call the contents.

        Raises:
            ConfigError: a ``model_type`` that is no known family, with the known ones.
            CheckpointError: no config.json, or a setting that cannot be represented (named, with its value).
        """
        if not isinstance(source, Mapping):
            path = Path(source)
            where = path / "config.json" if path.is_dir() else path
            source = read_hf_config(path)
        fields = spec_fields(source, where)
        try:
            return cls(**fields)
        except ValidationError as error:
            problems = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
            raise CheckpointError("cannot use this model", where=where, got=problems) from error

    @classmethod
    def load(cls, path: Path) -> ModelSpec:
        """Read ``model.json`` (or the directory that holds it).

        Raises:
            CheckpointError: missing or unreadable.
        """
        path = path / SPEC_NAME if path.is_dir() else path
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise CheckpointError(
                "no model description here", where=path, expected=f"{SPEC_NAME} beside the checkpoint"
            ) from None
        except (OSError, ValidationError) as error:
            raise CheckpointError("unreadable model description", where=path, got=error) from error

    def save(self, path: Path) -> None:
        """Write ``model.json`` (or into the directory ``path``)."""
        path = path / SPEC_NAME if path.is_dir() else path
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_hf_config(path: Path) -> dict[str, Any]:
    """Contents of ``config.json`` (or of the one in the directory ``path``).

    Raises:
        CheckpointError: missing or not JSON.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            "not a Hugging Face model directory",
            where=path,
            expected="config.json beside the weights",
            fix="give the directory that `save_pretrained` or `huggingface-cli download` wrote",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("unreadable config.json", where=file, got=error) from error
    if not isinstance(loaded, dict):
        raise CheckpointError("config.json is not a mapping", where=file, got=type(loaded).__name__)
    return loaded
