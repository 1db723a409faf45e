"""Mistral 7B and those of its shape."""

from __future__ import annotations

from tsugiki.experiment.model.family import FAMILIES, Family, GgufForm, HfConfig


@FAMILIES.register("mistral")
class Mistral(Family):
    """Grouped queries and, in the first version, a sliding window in every layer; no biases whatever is said."""

    architectures = ("MistralForCausalLM",)
    defaults = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}
    full_attention = {"sliding_window": None}
    gguf = GgufForm("llama", interleaved_rope=True)

    @classmethod
    def sliding_window(cls, config: HfConfig) -> int | None:
        """An explicit null switches the window off (0.2 and later say so); a missing key means 4096."""
        off = config.get_or_null("sliding_window") is None
        return None if off else config.size("sliding_window")
