"""Phi-3 and Phi-4 with one rope scale (the 4k releases, phi-4): `longrope` and partial rotation are refused."""

from __future__ import annotations

from tsugiki.experiment.model.family import FAMILIES, Family, GgufForm, HfConfig, TensorNames


@FAMILIES.register("phi3")
class Phi3(Family):
    """A Llama whose query, key and value projections are one tensor, and gate and up another."""

    architectures = ("Phi3ForCausalLM",)
    defaults = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    full_attention = {"sliding_window": None}
    names = TensorNames(qkv={"self_attn.qkv_proj": "qkk"}, gate_up={"mlp.gate_up_proj": "ff"})
    gguf = GgufForm("phi3")

    @classmethod
    def sliding_window(cls, config: HfConfig) -> int | None:
        """In every layer (2047 in Phi-3-mini-4k); off unless it is said."""
        return None if config.values.get("sliding_window") is None else config.size("sliding_window")
