"""Memory of one GPU of every pipeline stage, from the configuration alone.

Letters: h width, q query width (heads x head_dim), k key width (kv_heads x head_dim), f inner width of
the feed-forward layer, V vocabulary rows, t tensor-parallel size, e bytes of an activation (bf16 2,
fp32 4), T tokens of a micro-batch on one GPU (micro_batch x sequence_length / context).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pretrain.config import ParallelConfig, TrainConfig
from pretrain.spec import ModelSpec


@dataclass(frozen=True)
class StageMemory:
    """Memory of one GPU of a pipeline stage, in bytes.

    Attributes:
        parameters: parameters on this GPU (a number, not bytes).
        weights: parameters as forward and backward use them.
        gradients: fp32 gradient buffer.
        optimizer: fp32 copy of the weights (not for fp32 training) and two moments.
        activations: what the backward pass needs of the micro-batches in flight.
        logits: output scores in fp32 and their gradient; last stage only.
        workspace: what one layer recomputes, and gradients inside it, while it is walked backwards.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        """Bytes at the peak, without CUDA context, communication buffers and fragmentation.

        The logits are gone when the first layer is walked backwards, so only the larger counts.
        """
        state = self.weights + self.gradients + self.optimizer
        return state + self.activations + max(self.logits, self.workspace)


def stage_parameters(spec: ModelSpec, parallel: ParallelConfig, stage: int) -> int:
    """Parameters on one GPU of a pipeline stage, vocabulary padding included.

    Matrices are divided by t; norm weights and the biases added after a row-parallel product are not.
    Tied embeddings are stored on the first and on the last stage when these differ.
    """
    t = parallel.tensor
    h, q, k = spec.hidden_size, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    matrices = h * (2 * q + 2 * k) + 3 * h * spec.ffn_size
    biases = (q + 2 * k) * spec.qkv_bias + 2 * spec.ffn_size * spec.mlp_bias
    whole = 2 * h + h * spec.output_bias + h * spec.mlp_bias
    count = spec.layers // parallel.pipeline * ((matrices + biases) // t + whole)
    first, last = stage == 0, stage == parallel.pipeline - 1
    rows = padded_rows(spec.vocabulary_size, t) // t
    if first:
        count += rows * h
    if last:
        count += h + (0 if spec.tied_embeddings and first else rows * h)
    return count


def padded_rows(rows: int, tensor: int) -> int:
    """Vocabulary rows of the running model: every tensor-parallel rank holds the same multiple of 8."""
    return -(-rows // (8 * tensor)) * 8 * tensor


@dataclass(frozen=True)
class Kernels:
    """Which intermediate results the kernels in use leave for the backward pass.

    Attributes:
        fused_norm: RMSNorm keeps its input only; the CPU's keeps an fp32 copy and the normalised values.
        fused_swiglu: gate x up keeps the two halves only, without copies of silu(gate) and of up.
        grouped_attention: attention reads k and v of grouped queries as they are, without repeating
            them for every query head, and rotates in place.
    """

    fused_norm: bool = True
    fused_swiglu: bool = False
    grouped_attention: bool = False


CPU_KERNELS = Kernels(fused_norm=False)
"""torch on a CPU."""
TORCH_KERNELS = Kernels()
"""torch on a GPU: flash attention, fused RMSNorm."""
FUSED_KERNELS = Kernels(fused_swiglu=True, grouped_attention=True)
"""transformer-engine."""


class _Layer(NamedTuple):
    """Bytes a token leaves behind in one layer."""

    kept: float
    recomputed: float
    """Exists only while the layer is recomputed in the backward pass."""


def _layer_activations(spec: ModelSpec, train: TrainConfig, kernels: Kernels) -> _Layer:
    """Bytes per token that one layer keeps for its backward pass.

    Kept are the inputs of the norms and of the four products, what attention reads and writes (and one
    fp32 log-sum per head), and the parts of SwiGLU. Scores (s^2) are never stored: flash attention
    makes them again. Sequence parallelism divides what lies between the products, too.

    Worked example, Llama-2 7B (h = q = k = 4096, f = 11008), t = 1, bf16, fused kernels:
    2 x (4h + (q + 2k) + q + 3f) + 4 x 32 + 8 = 131,720 bytes per token and layer.
    """
    e = 4 if train.precision == "fp32" else 2
    t = train.parallel.tensor
    between = t if train.parallel.sequence else 1
    h, q, k, f = spec.hidden_size, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.ffn_size
    # Per norm: input (or fp32 input and normalised values), inverse root mean square; output = next input.
    stream = 2 * ((h * e if kernels.fused_norm else 8 * h) + 4 + h * e) / between
    mixed, log_sums = q + 2 * k, 4 * spec.heads / t
    if kernels.grouped_attention:
        attention = mixed + q
    elif spec.queries_per_group > 1:
        attention = 3 * q + q  # k and v repeated to the width of q
    else:
        attention = mixed + q + k + q  # v is a view into qkv; q and k are copied when rotated
    feed_forward = (3 if kernels.fused_swiglu else 5) * f * e / t
    everything = stream + attention * e / t + log_sums + feed_forward
    if train.recompute == "full":
        return _Layer(h * e / between, everything)
    if train.recompute == "selective":
        # Rotation and core attention run again from q, k, v, which are views into qkv (q is copied out of
        # it where groups are interleaved); the output stays as the input of the next product.
        inputs = mixed + q + (q if spec.queries_per_group > 1 and not kernels.grouped_attention else 0)
        return _Layer(
            stream + inputs * e / t + feed_forward,
            log_sums + (q + 2 * k if kernels.grouped_attention else 3 * q) * e / t,
        )
    return _Layer(everything, 0.0)


def layers_in_flight(parallel: ParallelConfig, stage: int, layers: int, micro_batches: int) -> float:
    """Layers x micro-batches whose activations a stage holds at once.

    One forward, one backward (Narayanan et al. 2021, arXiv 2104.04473): stage i of p starts p - i
    micro-batches before its first backward pass. Interleaved with v chunks of layers a stage, it starts
    2(p - i - 1) + (v - 1)p + 1 chunks.
    """
    p, v = parallel.pipeline, parallel.virtual_pipeline or 1
    per_chunk = layers / (p * v)
    chunks = p - stage if v == 1 else 2 * (p - stage - 1) + (v - 1) * p + 1
    return min(chunks, micro_batches * v) * per_chunk


def stage_memory(
    spec: ModelSpec, train: TrainConfig, data: int, stage: int, kernels: Kernels = TORCH_KERNELS
) -> StageMemory:
    """Memory of one GPU of pipeline stage ``stage`` with ``data`` replicas."""
    parallel = train.parallel
    t = parallel.tensor
    e = 4 if train.precision == "fp32" else 2
    parameters = stage_parameters(spec, parallel, stage)
    # Distributed optimizer: every replica (and context rank) owns an equal part of copy and moments.
    shards = data * parallel.context if train.optimizer.distributed else 1
    state = 8 if train.precision == "fp32" else 12
    # fp8 products keep cast copies of the weights, one for each direction, beside the bf16 ones.
    weight_bytes = {"fp32": 4, "bf16": 2, "fp8": 4}[train.precision]
    tokens = train.micro_batch * train.sequence_length // parallel.context
    micro_batches = max(1, train.global_batch // (train.micro_batch * data))
    layer = _layer_activations(spec, train, kernels)
    in_flight = layers_in_flight(parallel, stage, spec.layers, micro_batches)
    # Sines and cosines of the positions are shared by all layers, and made again by recomputation.
    angles = spec.head_dim * e / train.micro_batch if train.recompute == "none" else 0.0
    activations = tokens * (layer.kept * in_flight + angles)
    # Gradients of the inner activation, of its factors and of fc1's output, and of the layer's input.
    between = t if parallel.sequence else 1
    workspace = tokens * (layer.recomputed + e * (5 * spec.ffn_size / t + 2 * spec.hidden_size / between))
    logits = 0
    if stage == parallel.pipeline - 1:
        norm = spec.hidden_size * e if kernels.fused_norm else 8 * spec.hidden_size
        # Final norm, input of the output layer; ids, labels, sums of the loss (33 bytes a token).
        activations += tokens * ((norm + spec.hidden_size * e) / between + 33)
        rows = padded_rows(spec.vocabulary_size, t) // t
        # fp32 scores become exponentials and then the gradient in place; bf16 has a copy of its own.
        logits = tokens * rows * (4 if train.precision == "fp32" else 4 + e)
    return StageMemory(
        parameters=parameters,
        weights=parameters * weight_bytes,
        gradients=parameters * 4,
        optimizer=-(-parameters * state // shards),
        activations=int(activations),
        logits=logits,
        workspace=int(workspace),
    )


def memory_per_stage(
    spec: ModelSpec, train: TrainConfig, data: int, kernels: Kernels = TORCH_KERNELS
) -> list[StageMemory]:
    """Memory of one GPU of every pipeline stage."""
    return [stage_memory(spec, train, data, stage, kernels) for stage in range(train.parallel.pipeline)]
