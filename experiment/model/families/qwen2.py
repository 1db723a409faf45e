"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from tsugiki.experiment.model.family import FAMILIES, Biases, Family, GgufForm, HfConfig


@FAMILIES.register("qwen2")
class Qwen2(Family):
    """Biases at query, key and value always, nowhere else; a window only where it is switched on."""

    architectures = ("Qwen2ForCausalLM",)
    defaults = {"max_position_embeddings": 32768, "max_window_layers": 28, "num_key_value_heads": 32}
    gguf = GgufForm("qwen2")

    @classmethod
    def biases(cls, config: HfConfig) -> Biases:
        """Not configurable."""
        return Biases(qkv=True)

    @classmethod
    def sliding_window(cls, config: HfConfig) -> int | None:
        """The window, if every layer has it; layers of both kinds are refused."""
        window = config.values.get("sliding_window")
        if not config.values.get("use_sliding_window", False) or window is None:
            return None
        layers = config.size("num_hidden_layers")
        full = config.size("max_window_layers") if config.values.get("max_window_layers") != 0 else 0
        kinds = config.values.get("layer_types") or [
            "full_attention" if layer < full else "sliding_attention" for layer in range(layers)
        ]
        if set(kinds) == {"full_attention"}:
            return None
        if set(kinds) == {"sliding_attention"}:
            return config.size("sliding_window")
        raise config.unsupported("layer_types", sorted(set(kinds)), "the same attention in every layer")
