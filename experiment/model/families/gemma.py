"""Gemma 1."""

from __future__ import annotations

import math

from tsugiki.experiment.model.family import (
    FAMILIES,
    Activation,
    Biases,
    Family,
    GgufForm,
    HfConfig,
    activation_of,
)


@FAMILIES.register("gemma")
class Gemma(Family):
    """Norms multiply by 1 + weight, embeddings are scaled and tied, the gate is a tanh-approximated GeGLU."""

    architectures = ("GemmaForCausalLM",)
    defaults = {
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
    }
    norm_offset = 1.0
    gguf = GgufForm("gemma")

    @classmethod
    def biases(cls, config: HfConfig) -> Biases:
        """``attention_bias`` means all four projections of attention."""
        attention = config.flag("attention_bias")
        return Biases(qkv=attention, output=attention)

    @classmethod
    def embedding_scale(cls, hidden_size: int) -> float:
        """The root of the width."""
        return math.sqrt(hidden_size)

    @classmethod
    def activation(cls, config: HfConfig) -> Activation:
        """The published configs say "gelu" and mean the tanh form."""
        name = config.values.get("hidden_activation") or config.values.get("hidden_act")
        return activation_of(config, "gelu_pytorch_tanh" if name in (None, "gelu") else name)
