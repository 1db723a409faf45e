"""Floating-point operations of a model: the one formula behind plans, MFU and the cost of a vocabulary.

Letters: h width, q query width (heads x head_dim), k key width (kv_heads x head_dim), f inner width of the
feed-forward layer, L layers, V vocabulary rows, s sequence length.
"""

from __future__ import annotations

from tsugiki.experiment.model.model_spec import ModelSpec

PER_WEIGHT = 2.0
"""Operations of one weight for one token: a product with an [a, b] matrix is ab multiplications and ab additions."""


def forward_flops_per_token(spec: ModelSpec, sequence_length: int, *, causal: bool) -> float:
    """Operations of the matrix products of one token's forward pass.

    Weights: those of the layers and the output layer; the embedding is a look-up. Attention costs 4q per layer and
    position a token looks at (scores and weighted sum, 2q each): s positions in the full convention (Megatron-LM,
    NeMo <= 24.12, torchtitan, most published figures), the mean of 1..s with causal masking (Megatron-Bridge >= 25.09),
    never more than the sliding window. Norms, activations and softmax are left out, as everywhere.

    Worked example, Llama-2 7B (h = q = k = 4096, f = 11008, L = 32, V = 32000), s = 4096, full:
    32 x (8 x 4096^2 + 6 x 4096 x 11008 + 4 x 4096 x 4096) + 2 x 4096 x 32000 = 15.36 GFLOP.
    """
    weights = spec.layer_weights * spec.layers + spec.hidden_size * spec.vocabulary_size
    positions = mean_positions(sequence_length, spec.sliding_window, causal=causal)
    return PER_WEIGHT * weights + 4.0 * spec.heads * spec.head_dim * spec.layers * positions


def training_flops_per_token(spec: ModelSpec, sequence_length: int, *, causal: bool) -> float:
    """Operations of one token's forward and backward pass, recomputation not counted.

    The backward pass costs two products for every one of the forward pass.
    """
    return 3 * forward_flops_per_token(spec, sequence_length, causal=causal)


def mean_positions(sequence_length: int, window: int | None, *, causal: bool) -> float:
    """Positions a token attends to, itself included, on average over the sequence."""
    span = min(sequence_length, window or sequence_length)
    if not causal:
        return float(span)
    # The first `span` tokens see 1..span positions, the others `span` each.
    return (span * (span + 1) / 2 + (sequence_length - span) * span) / sequence_length
