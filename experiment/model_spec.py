"""What a decoder-only model is, independent of the framework that runs it.

:class:`ModelSpec` is read from a Hugging Face ``config.json`` and written as ``model.json`` beside
every Megatron checkpoint; building the Megatron model, converting weights and planning memory all
start from it. Nothing about an architecture is assumed elsewhere: rope base and scaling, head
width, grouped queries, sliding window, biases and tied embeddings are all fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from tsugiki.experiment.config import StrictModel
from tsugiki.experiment.errors import CheckpointError

SPEC_NAME = "model.json"
Family = Literal["llama", "mistral", "gemma", "qwen2"]

# model_type of config.json -> family. Yi was first published with code of its own and the model
# type "Yi"; its weights are those of a Llama.
_FAMILIES: dict[str, Family] = {
    "llama": "llama",
    "yi": "llama",
    "mistral": "mistral",
    "gemma": "gemma",
    "qwen2": "qwen2",
}
# What transformers assumes where config.json is silent (configuration_<family>.py).
_DEFAULTS: dict[Family, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "gemma": {"max_position_embeddings": 8192, "head_dim": 256, "tie_word_embeddings": True},
    "qwen2": {"max_position_embeddings": 32768, "max_window_layers": 28},
}
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_ROPE_TYPES = ("linear", "llama3", "yarn")


class ModelSpec(StrictModel):
    """Architecture of a dense decoder-only transformer with rotary positions and RMSNorm."""

    family: Family
    """Architecture of the Hugging Face side: decides the weight table and the exported config."""
    layers: int = Field(gt=0)
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
        if self.rope_scaling is not None and self.rope_scaling.get("rope_type") not in _ROPE_TYPES:
            raise ValueError(f"rope_scaling.rope_type must be one of {', '.join(_ROPE_TYPES)}")
        return self

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def parameters(self) -> int:
        """Number of weights, tied embeddings counted once."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys)
        attention += (queries + 2 * keys) * self.qkv_bias + self.hidden_size * self.output_bias
        mlp = 3 * self.hidden_size * self.ffn_size
        mlp += (2 * self.ffn_size + self.hidden_size) * self.mlp_bias
        matrices = 1 if self.tied_embeddings else 2
        return (
            matrices * self.vocabulary_size * self.hidden_size
            + self.layers * (attention + mlp + 2 * self.hidden_size)
            + self.hidden_size
        )

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | Path | str) -> ModelSpec:
        """Read the architecture of a Hugging Face model.

        Args:
            source: the contents of ``config.json``, that file, or the directory that holds it.

        Raises:
            CheckpointError: no config.json, unknown architecture, or a setting that cannot be
                represented (named, with its value).
        """
        where: object = "config.json"
        if not isinstance(source, Mapping):
            path = Path(source)
            where = path / "config.json" if path.is_dir() else path
            source = read_hf_config(path)
        return _Reader(source, where).spec()

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
    except (OSError, ValueError) as error:
        raise CheckpointError("unreadable config.json", where=file, got=error) from error
    if not isinstance(loaded, dict):
        raise CheckpointError("config.json is not a mapping", where=file, got=type(loaded).__name__)
    return loaded


class _Reader:
    """Reads one config.json with transformers' defaults for what it leaves out."""

    def __init__(self, config: Mapping[str, Any], where: object) -> None:
        self.config = config
        self.where = where
        model_type = str(config.get("model_type", "")).lower()
        if model_type not in _FAMILIES:
            raise CheckpointError(
                "unknown architecture",
                where=where,
                got=f"model_type {config.get('model_type')!r}",
                expected=f"one of {', '.join(_FAMILIES)}",
            )
        self.family = _FAMILIES[model_type]
        self.defaults = _DEFAULTS[self.family]

    def get(self, key: str, fallback: Any = None) -> Any:
        """The value, or transformers' default; an explicit null counts as left out."""
        value = self.config.get(key)
        return self.defaults.get(key, fallback) if value is None else value

    def size(self, key: str, fallback: Any = None) -> int:
        """A required positive whole number."""
        value = self.get(key, fallback)
        if not isinstance(value, int) or value <= 0:
            raise self.unsupported(key, value, "a positive whole number")
        return value

    def unsupported(self, key: str, got: object, expected: str) -> CheckpointError:
        """An error about one setting."""
        return CheckpointError(
            f"cannot use this model: {key}", where=self.where, got=repr(got), expected=expected
        )

    def spec(self) -> ModelSpec:
        """The architecture."""
        hidden_size = self.size("hidden_size")
        heads = self.size("num_attention_heads")
        head_dim = self.size("head_dim", hidden_size // heads)
        theta, scaling = self.rope()
        attention_bias = bool(self.get("attention_bias", False))
        gemma = self.family == "gemma"
        try:
            return ModelSpec(
                family=self.family,
                layers=self.size("num_hidden_layers"),
                hidden_size=hidden_size,
                ffn_size=self.size("intermediate_size"),
                heads=heads,
                kv_heads=self.size("num_key_value_heads", heads),
                head_dim=head_dim,
                vocabulary_size=self.size("vocab_size"),
                max_positions=self.size("max_position_embeddings"),
                norm_epsilon=float(self.get("rms_norm_eps", 1e-6)),
                norm_offset=1.0 if gemma else 0.0,
                activation=self.activation(),
                rope_theta=theta,
                rope_scaling=scaling,
                sliding_window=self.sliding_window(),
                tied_embeddings=bool(self.get("tie_word_embeddings", False)),
                embedding_scale=math.sqrt(hidden_size) if gemma else 1.0,
                qkv_bias=True if self.family == "qwen2" else attention_bias,
                output_bias=False if self.family == "qwen2" else attention_bias,
                mlp_bias=self.family == "llama" and bool(self.get("mlp_bias", False)),
            )
        except ValidationError as error:
            problems = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
            raise CheckpointError("cannot use this model", where=self.where, got=problems) from error

    def activation(self) -> Literal["silu", "gelu_tanh"]:
        """The gate's activation. Gemma's published configs say "gelu" and mean the tanh form."""
        if self.family == "gemma":
            name = self.config.get("hidden_activation") or self.config.get("hidden_act")
            name = "gelu_pytorch_tanh" if name in (None, "gelu") else name
        else:
            name = self.get("hidden_act", "silu")
        if name not in _ACTIVATIONS:
            raise self.unsupported("hidden_act", name, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def rope(self) -> tuple[float, dict[str, Any] | None]:
        """Base and scaling: ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling``."""
        parameters = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(parameters, Mapping):
            raise self.unsupported("rope_parameters", parameters, "a mapping")
        theta = parameters.get("rope_theta", self.get("rope_theta", 10000.0))
        scaling = {
            key: value for key, value in parameters.items() if key not in ("rope_theta", "type", "rope_type")
        }
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if scaling.pop("partial_rotary_factor", self.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
            raise self.unsupported("partial_rotary_factor", parameters, "rotary positions over whole heads")
        if kind == "default":
            return float(theta), None
        if kind not in _ROPE_TYPES:
            raise self.unsupported("rope_type", kind, f"default, {', '.join(_ROPE_TYPES)}")
        original = self.config.get("original_max_position_embeddings")
        if original is not None:
            scaling.setdefault("original_max_position_embeddings", original)
        return float(theta), {"rope_type": kind, **scaling}

    def sliding_window(self) -> int | None:
        """The window, if every layer has it; layers of both kinds are refused."""
        # An explicit null is meaningful here: Mistral 0.2 and later say so to switch the window off.
        window = self.config.get("sliding_window", self.defaults.get("sliding_window"))
        if self.family == "mistral":
            return None if window is None else int(window)
        if self.family != "qwen2" or not self.config.get("use_sliding_window", False) or window is None:
            return None
        layers = self.size("num_hidden_layers")
        full = self.size("max_window_layers") if self.config.get("max_window_layers") != 0 else 0
        kinds = self.config.get("layer_types") or [
            "full_attention" if layer < full else "sliding_attention" for layer in range(layers)
        ]
        if set(kinds) == {"full_attention"}:
            return None
        if set(kinds) == {"sliding_attention"}:
            return int(window)
        raise self.unsupported("layer_types", sorted(set(kinds)), "the same attention in every layer")
