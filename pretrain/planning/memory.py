"""Memory of one GPU of every pipeline stage, from the configuration alone.

Letters: h width, q query width (heads x head_dim), k key width (kv_heads x head_dim), f inner width of
the feed-forward layer, V vocabulary rows, t tensor-parallel size, e bytes of an activation (bf16 2,
fp32 4), s sequence_length, c context-parallel size, T tokens of a micro-batch on one GPU
(micro_batch x s / c).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import ParallelConfig, TrainConfig
from tsugiki.pretrain.planning.flops import recomputed_share

_LOSS_CHUNK_BYTES, _LOSS_KEPT_BYTES = 1 << 28, 1 << 30
"""Of `pretrain/model/fused_loss.py`: logits multiplied at a time, and kept for the backward pass at most."""
_ID_BYTES, _LOSS_BYTES = 8, 25
"""A token's id that the embedding keeps; its label and the sums of its loss."""


@dataclass(frozen=True)
class StageMemory:
    """Memory of one GPU of a pipeline stage, in bytes.

    Attributes:
        parameters: parameters on this GPU (a number, not bytes).
        weights: parameters as forward and backward use them.
        gradients: fp32 gradient buffer.
        optimizer: fp32 copy of the weights (not for fp32 training) and two moments.
        activations: what is kept of the micro-batches in flight for their backward pass.
        logits: beside it while the loss is made and the output layer walked backwards; last stage only.
        workspace: beside it at the worst moment after that: what a layer recomputes, gradients of
            intermediate results, and of one weight matrix before it is added to the buffer.
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

        The logits are gone when the last layer is walked backwards, so only the larger counts.
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
        fused_activation: gate x up keeps the two halves only, without copies of act(gate) and of up; on a
            GPU with `train.compile`.
        grouped_attention: attention reads k and v of grouped queries as they are, without repeating
            them for every query head, and needs no mask of s x s for a sliding window.
        fused_loss: output layer and loss in one, in chunks and without fp32 logits.
    """

    fused_norm: bool = True
    fused_activation: bool = True
    grouped_attention: bool = True
    fused_loss: bool = True


CPU_KERNELS = Kernels(fused_norm=False, fused_activation=False, grouped_attention=False, fused_loss=False)
"""The plain path, which a CPU takes."""
TORCH_KERNELS = Kernels()
"""On a GPU. transformer-engine's layers keep the same in bf16."""


class _Layer(NamedTuple):
    """Bytes a token leaves behind in one layer."""

    kept: float
    recomputed: float
    """Exists only while the layer is recomputed in the backward pass."""
    attention: float
    """Gradients while attention is walked backwards, less what is gone by then; may be negative."""


def _layer_activations(spec: ModelSpec, train: TrainConfig, kernels: Kernels) -> _Layer:
    """Bytes per token that one layer keeps for its backward pass.

    Kept are the inputs of the norms and of the four products, what attention reads and writes (and one
    fp32 log-sum per head), and the parts of the gated activation. Scores (s^2) are never stored: flash
    attention makes them again. Sequence parallelism divides what lies between the products, too.

    Worked example, Llama-2 7B (h = q = k = 4096, f = 11008), t = 1, bf16, a GPU's kernels:
    2 x (4h + (q + 2k) + (q + k) + q + 3f) + 4 x 32 + 8 = 148,104 bytes per token and layer.
    """
    e = 4 if train.precision == "fp32" else 2
    t, c = train.parallel.tensor, train.parallel.context
    between = t if train.parallel.sequence else 1
    h, q, k, f = spec.hidden_size, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.ffn_size
    # Per norm: input (or fp32 input and normalised values), inverse root mean square; output = next input.
    stream = 2 * ((h * e if kernels.fused_norm else 8 * h) + 4 + h * e) / between
    mixed, log_sums = q + 2 * k, 4 * spec.heads / t
    grouped = spec.queries_per_group > 1
    repeated = grouped and not kernels.grouped_attention
    if c > 1:
        # k and v of the whole sequence; the output of each half of the queries, and both in one.
        # Repeated, they are cut to what a half sees: of 2c parts r + 1 and 2c - r on rank r.
        attended = 2 * (q * (2 * c + 1) / 2 if repeated else k * c)
        rotated, output = q + attended, 2 * q
        attention = rotated + output
    else:
        # v is a view into qkv, which stays whole unless v was repeated; q and k are copied when rotated.
        attended = 2 * q
        rotated, output = (3 * q if repeated else q + k), q
        attention = rotated + output + (0 if repeated else mixed)
    mask = 0.0
    if not kernels.grouped_attention and spec.sliding_window and spec.sliding_window < train.sequence_length:
        mask = train.sequence_length * e / train.micro_batch
    fused_activation = kernels.fused_activation and train.compile
    feed_forward = (3 if fused_activation else 5) * f * e / t
    everything = stream + attention * e / t + log_sums + mask + feed_forward
    # Gradients of output, query, keys and values (of one of these from both halves of the queries, until they
    # are added up); the feed-forward half of the layer is gone.
    walked = (2 * q + attended * (1.5 if c > 1 else 1)) * e / t - feed_forward - stream / 2
    if train.recompute == "full":
        # The input of a fused norm is what is kept of the layer.
        own = h * e / between
        return _Layer(own, everything - (own if kernels.fused_norm else 0), walked)
    if train.recompute == "selective":
        # Rotation and core attention run again from q, k, v, which are views into qkv (q is copied out of
        # it where the rank has several groups); the output stays as the input of the next product.
        inputs = mixed + q + (q if grouped and spec.kv_heads > t else 0)
        again = (rotated + output - q) * e / t + log_sums + mask
        return _Layer(stream + inputs * e / t + feed_forward, again, walked)
    return _Layer(everything, 0.0, walked)


def chunks_in_flight(parallel: ParallelConfig, stage: int, micro_batches: int) -> int:
    """Passes through a chunk of layers whose activations a stage holds at once.

    One forward, one backward (Narayanan et al. 2021, arXiv 2104.04473): stage i of p starts p - i
    micro-batches before its first backward pass. Interleaved with v chunks of layers a stage, it starts
    2(p - i - 1) + (v - 1)p + 1 chunks.
    """
    p, v = parallel.pipeline, parallel.virtual_pipeline or 1
    chunks = p - stage if v == 1 else 2 * (p - stage - 1) + (v - 1) * p + 1
    return min(chunks, micro_batches * v)


def layers_in_flight(parallel: ParallelConfig, stage: int, layers: int, micro_batches: int) -> float:
    """Layers x micro-batches whose activations a stage holds at once."""
    per_chunk = layers / (parallel.pipeline * (parallel.virtual_pipeline or 1))
    return chunks_in_flight(parallel, stage, micro_batches) * per_chunk


def _logits(spec: ModelSpec, train: TrainConfig, tokens: int, rows: int, kernels: Kernels) -> float:
    """Bytes while the loss is made and the output layer walked backwards."""
    e = 4 if train.precision == "fp32" else 2
    scores, weight, hidden = tokens * rows * e, rows * spec.hidden_size * e, tokens * spec.hidden_size * e
    if kernels.fused_loss:
        # Logits are kept or, too many, made again; beside them a chunk of their gradient.
        chunk = min(scores, _LOSS_CHUNK_BYTES)
        return (scores if scores <= _LOSS_KEPT_BYTES else chunk) + chunk + weight + hidden
    if train.precision == "fp32":
        return scores + weight + hidden  # scores become exponentials and then the gradient in place
    # fp32 exponentials and the gradient in bf16; then the gradient of the weight instead of the former.
    return max(3 * scores, scores + weight + hidden)


def _workspace(spec: ModelSpec, train: TrainConfig, tokens: int, layer: _Layer, kernels: Kernels) -> float:
    """Bytes beside what is kept, at the worst moment of a layer's backward pass."""
    e = 4 if train.precision == "fp32" else 2
    parallel = train.parallel
    t = parallel.tensor
    hidden = tokens * spec.hidden_size * e
    own = hidden / (t if parallel.sequence else 1)
    scattered = own if parallel.sequence else 0
    inner, matrix = tokens * spec.ffn_size * e / t, spec.ffn_size * spec.hidden_size * e / t
    released = 1 if kernels.fused_activation and train.compile else 3
    recomputed = layer.recomputed * tokens
    first = recomputed + own if train.recompute == "full" else 0.0  # with the layer's output
    moments = (
        # fc2: the gradient of its output (gathered), of its input and of its weight.
        first + own + (hidden if parallel.sequence else 0) + inner + matrix,
        # Gated activation: the input of fc2 is gone; gradients of its input and of the two factors.
        first + own + 2 * inner,
        # fc1: of what the activation kept only the gradient of its input remains.
        first + own + hidden + scattered + 2 * matrix - released * inner,
        recomputed + own + tokens * layer.attention,
    )
    return max(moments)


def stage_memory(
    spec: ModelSpec, train: TrainConfig, data_parallel_size: int, stage: int, kernels: Kernels = TORCH_KERNELS
) -> StageMemory:
    """Memory of one GPU of pipeline stage ``stage``."""
    parallel = train.parallel
    t = parallel.tensor
    e = 4 if train.precision == "fp32" else 2
    first, last = stage == 0, stage == parallel.pipeline - 1
    parameters = stage_parameters(spec, parallel, stage)
    # Distributed optimizer: every data-parallel (and context) rank owns an equal part of copy and moments.
    shards = data_parallel_size * parallel.context if train.optimizer.distributed else 1
    state = 8 if train.precision == "fp32" else 12
    # fp8 products keep cast copies of the weights, one for each direction, beside the bf16 ones.
    weight_bytes = {"fp32": 4, "bf16": 2, "fp8": 4}[train.precision]
    tokens = train.micro_batch * train.sequence_length // parallel.context
    micro_batches = max(1, train.global_batch // (train.micro_batch * data_parallel_size))
    layer = _layer_activations(spec, train, kernels)
    passes = chunks_in_flight(parallel, stage, micro_batches)
    share = recomputed_share(spec, train)
    kept_whole = train.model_copy(update={"recompute": "none"})
    plain = _layer_activations(spec, kept_whole, kernels)
    # Sines and cosines of the positions are shared by all layers, and made again by recomputation.
    keeps = share < 1 and train.recompute != "selective"
    angles = spec.head_dim * e / train.micro_batch if keeps else 0.0
    hidden = tokens * spec.hidden_size * e
    own = hidden / (t if parallel.sequence else 1)
    # The schedule keeps what a stage sends on until its gradient comes back.
    sent_on = passes - 1 if last else passes
    ids = passes * tokens * _ID_BYTES if first else 0
    average = share * layer.kept + (1 - share) * plain.kept if 0 < share < 1 else layer.kept
    kept = tokens * average * layers_in_flight(parallel, stage, spec.layers, micro_batches)
    activations = kept + sent_on * own + ids + tokens * angles
    # Sequence parallelism gathers the inputs of its products into a buffer that stays.
    gathered = hidden if parallel.sequence and t > 1 else 0
    # The schedule lets the gradient that it has sent back go when it has the next one. Interleaved, messages
    # arrive and leave while a chunk is computed: as many as were counted in runs with p and v of 2 and 4.
    v = parallel.virtual_pipeline
    under_way = (0 if first else 1) if v is None else (v if first else v + 4)
    besides = gathered + under_way * own
    rows = padded_rows(spec.vocabulary_size, t) // t
    embedding = rows * spec.hidden_size * e
    # Autograd holds the gradient of a tied output matrix until it has that of the embedding.
    pending = embedding if spec.tied_embeddings and first and last else 0
    head = logits = 0.0
    if last:
        norm = spec.hidden_size * e if kernels.fused_norm else 8 * spec.hidden_size
        # Final norm, input of the output layer (gathered where the loss is fused), labels, sums of the loss.
        head = tokens * (norm / (t if parallel.sequence else 1) + _LOSS_BYTES)
        head += hidden if kernels.fused_loss else own
        activations += head
        logits = besides + _logits(spec, train, tokens, rows, kernels)
    walking = _workspace(spec, train, tokens, layer, kernels)
    if 0 < share < 1:
        # The first layers are recomputed: when it is their turn, those behind them are gone.
        gone = (1 - share) * layers_in_flight(parallel, stage, spec.layers, micro_batches) / passes
        walking = max(
            walking - gone * tokens * plain.kept, _workspace(spec, kept_whole, tokens, plain, kernels)
        )
    workspace = pending - head + walking
    if first:
        # The last moment: nothing else is left of this micro-batch.
        workspace = max(workspace, pending + embedding + 2 * hidden - activations / passes)
    return StageMemory(
        parameters=parameters,
        weights=parameters * weight_bytes,
        gradients=parameters * 4,
        optimizer=-(-parameters * state // shards),
        activations=int(activations),
        logits=int(logits),
        workspace=int(max(0.0, besides + workspace)),
    )


def memory_per_stage(
    spec: ModelSpec, train: TrainConfig, data_parallel_size: int, kernels: Kernels = TORCH_KERNELS
) -> list[StageMemory]:
    """Memory of one GPU of every pipeline stage."""
    return [
        stage_memory(spec, train, data_parallel_size, stage, kernels)
        for stage in range(train.parallel.pipeline)
    ]
