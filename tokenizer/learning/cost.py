"""What a vocabulary costs and saves in a given model: parameters, FLOPs, context, KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tsugiki.experiment.model.model_flops import PER_WEIGHT
from tsugiki.experiment.model.model_spec import ModelSpec


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
        return PER_WEIGHT * (self.body_parameters + vocabulary * self.hidden_size)

    def parameters(self, vocabulary: int) -> int:
        """All parameters."""
        return self.body_parameters + self.matrices * vocabulary * self.hidden_size


MISTRAL_7B = ModelShape(4096, 6_979_588_096, False, 32_768)
"""Mistral-7B-v0.1: 7,241,732,096 parameters less 2 x 32,000 x 4,096 rows."""


def shape_of(config: Mapping[str, Any], where: object) -> ModelShape:
    """Shape from a Hugging Face ``config.json``; norms and biases are left out as they are below a thousandth.

    Raises:
        ConfigError: its model family is not known.
        CheckpointError: a setting that cannot be represented.
    """
    spec = ModelSpec.from_hf(config, where)
    return ModelShape(
        hidden_size=spec.hidden_size,
        body_parameters=spec.layers * spec.layer_weights,
        tied=spec.tied_embeddings,
        context_tokens=spec.max_positions,
    )


def relative_cost(
    shape: ModelShape, tokens: float, vocabulary: int, base_tokens: float, base_vocabulary: int
) -> float:
    """FLOPs for the same text relative to the base tokenizer; training and prefill alike (1 is the base)."""
    return tokens * shape.flops_per_token(vocabulary) / (base_tokens * shape.flops_per_token(base_vocabulary))
