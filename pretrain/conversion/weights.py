"""The weight table: which Hugging Face tensors make up which Megatron tensor, and how.

One table serves both directions, so import and export cannot disagree. Letters of the shapes:

    v vocabulary rows     h hidden_size     f ffn_size
    q heads x head_dim    k kv_heads x head_dim

Megatron side: keys of ``GPTModel.sharded_state_dict()`` for the local layer spec, which maps the
two norms of a layer to the names transformer-engine's fused layers use, so that the same
checkpoint loads into either. Tensors of all layers are stacked on a new axis 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tsugiki.experiment.model.family import find_family
from tsugiki.experiment.model.model_spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["same", "gate_up", "qkv"]
"""How the parts of a tensor lie on axis 0: one part; gate above up; per key/value head [q...q, k, v]."""

# Modules for which Megatron's local layers save an (empty) extra state, one object a layer.
EXTRA_STATE_MODULES = (
    "decoder.layers.self_attention.linear_proj",
    "decoder.layers.self_attention.linear_qkv",
    "decoder.layers.mlp.linear_fc1",
    "decoder.layers.mlp.linear_fc2",
)
# Buffers that old checkpoints carry and that follow from the configuration.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class Part:
    """One Hugging Face tensor: ``{layer}`` in the name marks one per layer.

    Attributes:
        name: its name.
        rows: letters of axis 0; several for a fused tensor, from top to bottom (``qkk``: q, then k, then v).
        columns: letter of axis 1, empty for a vector.
    """

    name: str
    rows: str
    columns: str = ""

    def shape(self, spec: ModelSpec) -> tuple[int, ...]:
        """Sizes of the letters for a model."""
        return (sum(self.sections(spec)), *(_size(letter, spec) for letter in self.columns))

    def sections(self, spec: ModelSpec) -> list[int]:
        """Number of rows of each letter of axis 0."""
        return [_size(letter, spec) for letter in self.rows]


def _size(letter: str, spec: ModelSpec) -> int:
    return {
        "v": spec.vocabulary_size,
        "h": spec.hidden_size,
        "f": spec.ffn_size,
        "q": spec.heads * spec.head_dim,
        "k": spec.kv_heads * spec.head_dim,
    }[letter]


@dataclass(frozen=True)
class Rows:
    """``count`` rows of a Hugging Face part and where they lie in the Megatron tensor of a layer."""

    part: int
    part_start: int
    start: int
    count: int


@dataclass(frozen=True)
class Weight:
    """One row of the table."""

    megatron: str
    parts: tuple[Part, ...]
    layout: Layout = "same"

    @property
    def per_layer(self) -> bool:
        """Whether the Megatron tensor stacks all layers on axis 0."""
        return "{layer}" in self.parts[0].name

    @property
    def vocabulary(self) -> bool:
        """Whether axis 0 is the vocabulary."""
        return self.parts[0].rows == "v"

    def names(self, layer: int) -> list[str]:
        """Hugging Face names of the parts in one layer."""
        return [part.name.format(layer=layer) for part in self.parts]

    def layers(self, spec: ModelSpec) -> range:
        """Layers the weight exists in; one pseudo-layer for weights outside the layers."""
        return range(spec.layers if self.per_layer else 1)

    def shape(self, spec: ModelSpec) -> tuple[int, ...]:
        """Shape of the Megatron tensor of one layer (without the stacking axis)."""
        shapes = [part.shape(spec) for part in self.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def global_shape(self, spec: ModelSpec) -> tuple[int, ...]:
        """Shape of the global tensor in the checkpoint."""
        return (spec.layers, *self.shape(spec)) if self.per_layer else self.shape(spec)

    def rows(self, spec: ModelSpec) -> list[Rows]:
        """The layout on axis 0 as runs of rows, in Megatron's order."""
        if self.layout != "qkv":
            sizes = [part.shape(spec)[0] for part in self.parts]
            starts = [sum(sizes[:number]) for number in range(len(sizes))]
            return [Rows(number, 0, starts[number], size) for number, size in enumerate(sizes)]
        # Sections of q, k and v, whichever tensors they lie in: (part, first row in it, rows of a group).
        sections = [
            (number, sum(part.sections(spec)[:position]), size // spec.kv_heads)
            for number, part in enumerate(self.parts)
            for position, size in enumerate(part.sections(spec))
        ]
        # One run of queries, one key head and one value head in every group.
        group_rows = sum(count for _, _, count in sections)
        return [
            Rows(
                number,
                first + group * count,
                group * group_rows + sum(item[2] for item in sections[:at]),
                count,
            )
            for group in range(spec.kv_heads)
            for at, (number, first, count) in enumerate(sections)
        ]

    def blocks(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """Row ranges of one layer's tensor that are stored apart.

        Gate and up are, as Megatron itself does, because tensor parallelism cuts each of them.
        """
        if self.layout != "gate_up":
            return [(0, self.shape(spec)[0])]
        rows = self.shape(spec)[0] // 2
        return [(0, rows), (rows, 2 * rows)]


def weight_table(spec: ModelSpec) -> list[Weight]:
    """All weights of a model, in the order Hugging Face saves them."""
    names = find_family(spec.family).names
    block, stack = "model.layers.{layer}.", "decoder.layers."
    rows = [Weight("embedding.word_embeddings.weight", (Part(EMBEDDING, "v", "h"),))]

    def projection(
        megatron: str, tensors: Mapping[str, str], columns: str, bias: bool, layout: Layout = "same"
    ) -> None:
        weights = tuple(Part(f"{block}{name}.weight", letters, columns) for name, letters in tensors.items())
        rows.append(Weight(f"{stack}{megatron}.weight", weights, layout))
        if bias:
            biases = tuple(Part(f"{block}{name}.bias", letters) for name, letters in tensors.items())
            rows.append(Weight(f"{stack}{megatron}.bias", biases, layout))

    projection("self_attention.linear_qkv", names.qkv, "h", spec.qkv_bias, "qkv")
    projection("self_attention.linear_proj", {names.attention_output: "h"}, "q", spec.output_bias)
    projection("mlp.linear_fc1", names.gate_up, "h", spec.mlp_bias, "gate_up")
    projection("mlp.linear_fc2", {names.mlp_output: "h"}, "f", spec.mlp_bias)
    for megatron, name in (
        ("self_attention.linear_qkv.layer_norm_weight", names.attention_norm),
        ("mlp.linear_fc1.layer_norm_weight", names.mlp_norm),
    ):
        rows.append(Weight(stack + megatron, (Part(f"{block}{name}.weight", "h"),)))
    rows.append(Weight("decoder.final_layernorm.weight", (Part("model.norm.weight", "h"),)))
    if not spec.tied_embeddings:
        rows.append(Weight("output_layer.weight", (Part(OUTPUT, "v", "h"),)))
    return rows


def hf_tensors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every Hugging Face tensor, layer by layer as transformers saves them."""
    table = weight_table(spec)
    first = [weight for weight in table if not weight.per_layer and weight.parts[0].name == EMBEDDING]
    layered = [weight for weight in table if weight.per_layer]
    last = [weight for weight in table if not weight.per_layer and weight not in first]
    for weight, layer in [
        *((weight, 0) for weight in first),
        *((weight, layer) for layer in range(spec.layers) for weight in layered),
        *((weight, 0) for weight in last),
    ]:
        for part in weight.parts:
            yield part.name.format(layer=layer), part.shape(spec)


def merge(weight: Weight, parts: Sequence[Tensor], spec: ModelSpec) -> Tensor:
    """The Megatron tensor of one layer from its Hugging Face parts."""
    import torch

    runs = weight.rows(spec)
    return torch.cat([parts[run.part][run.part_start : run.part_start + run.count] for run in runs])


def split(weight: Weight, tensor: Tensor, spec: ModelSpec) -> list[Tensor]:
    """The Hugging Face parts of one layer's Megatron tensor; inverse of :func:`merge`."""
    import torch

    # By their place in the part: the runs of a fused one come group by group.
    runs = sorted(weight.rows(spec), key=lambda run: run.part_start)
    return [
        torch.cat([tensor[run.start : run.start + run.count] for run in runs if run.part == number])
        for number in range(len(weight.parts))
    ]
