"""Llama 1 to 3.x, TinyLlama, SmolLM and SmolLM2."""

from __future__ import annotations

from typing import ClassVar

from tsugiki.experiment.model.family import FAMILIES, Biases, Family, GgufForm, HfConfig


@FAMILIES.register("llama")
class Llama(Family):
    """The default in everything; later models of its shape have biases."""

    architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM",)
    defaults = {"max_position_embeddings": 2048}
    gguf = GgufForm("llama", interleaved_rope=True)

    @classmethod
    def biases(cls, config: HfConfig) -> Biases:
        """``attention_bias`` means all four projections of attention."""
        attention = config.flag("attention_bias")
        return Biases(qkv=attention, output=attention, mlp=config.flag("mlp_bias"))
