"""Yi's first release, which came with code of its own; later ones call themselves llama."""

from __future__ import annotations

from tsugiki.experiment.model.families.llama import Llama
from tsugiki.experiment.model.family import FAMILIES, TensorNames


@FAMILIES.register("yi")
class Yi(Llama):
    """A Llama with other names for the two norms of a layer; a grafted one is a Llama."""

    architectures = ("YiForCausalLM", "LlamaForCausalLM")
    converted_to = "llama"
    names = TensorNames(
        earlier={
            ".ln1.weight": ".input_layernorm.weight",
            ".ln2.weight": ".post_attention_layernorm.weight",
        }
    )
