"""What a vocabulary costs and saves in a given model: parameters, FLOPs, context, KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """The part of a model that the cost of a vocabulary depends on.

    Attributes:
        hidden_size: width, so numbers in one row.
        body_parameters: parameters without embedding and output matrix.
        tied: the two matrices are one.
        context_tokens: longest context.
    """

    hidden_size: int
    body_parameters: int
    tied: bool
    context_tokens: int

    @property
    def matrices(self) -> int:
        """Rows stored per piece: 1 when tied, else 2."""
        return 1 if self.tied else 2

    def flops_per_token(self, vocabulary: int) -> float:
        """Forward FLOPs of a token: two per parameter that it meets.

        The embedding is a look-up; the output product meets every row whether or not it is tied. Attention
        over the context is left out: it depends on the length of text in tokens, where fewer is only better.
        """
        return 2.0 * (self.body_parameters + vocabulary * self.hidden_size)

    def parameters(self, vocabulary: int) -> int:
        """All parameters."""
        return self.body_parameters + self.matrices * vocabulary * self.hidden_size


MISTRAL_7B = ModelShape(4096, 6_979_588_096, False, 32_768)
"""Mistral-7B-v0.1: 7,241,732,096 parameters less 2 x 32,000 x 4,096 rows."""


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Shape from a Hugging Face ``config.json`` of a Llama-like model.

    Per layer: attention q and o of heads x head_dim, k and v of kv_heads x head_dim, and three matrices of
    the gated feed-forward network; norms are left out as they are below a thousandth.
    """
    hidden = int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    feed_forward = 3 * hidden * int(config["intermediate_size"])
    return ModelShape(
        hidden_size=hidden,
        body_parameters=int(config["num_hidden_layers"]) * (attention + feed_forward),
        tied=bool(config.get("tie_word_embeddings", False)),
        context_tokens=int(config.get("max_position_embeddings") or 4096),
    )


def relative_cost(
    shape: ModelShape, tokens: float, vocabulary: int, base_tokens: float, base_vocabulary: int
) -> float:
    """FLOPs for the same text relative to the base tokenizer; training and prefill alike (1 is the base)."""
    return tokens * shape.flops_per_token(vocabulary) / (base_tokens * shape.flops_per_token(base_vocabulary))
