"""Builds Megatron's GPTModel for an architecture read from a Hugging Face configuration."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import ParallelConfig
from tsugiki.pretrain.model.backend import REFERENCE, Acceleration, prepare_megatron
from tsugiki.pretrain.model.blocked_loss import blocked_cross_entropy
from tsugiki.pretrain.model.cpu_kernels import embedding
from tsugiki.pretrain.model.fused_attention import BlockMasks
from tsugiki.pretrain.model.fused_loss import linear_cross_entropy
from tsugiki.pretrain.model.layers import RMSNorm, RotaryPositions, SelfAttentionCore
from tsugiki.pretrain.model.loss import vocabulary_parallel_loss
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu

_ROWS_PER_RANK_MULTIPLE = 8


def padded_vocabulary(size: int, tensor_parallel: int) -> int:
    """Rows of the running model's embedding: every rank holds the same multiple of 8.

    The padding exists only while a model runs; checkpoints hold the true rows.
    """
    multiple = tensor_parallel * _ROWS_PER_RANK_MULTIPLE
    return -(-size // multiple) * multiple


class TrainingModel(GPTModel):
    """GPTModel whose loss leaves the padded vocabulary rows out and may add a z-loss.

    `forward(..., labels=...)` returns what to minimise and the cross entropy, both [b, s] fp32.
    """

    true_vocabulary_size: int
    z_loss: float = 0.0
    acceleration: Acceleration = REFERENCE

    def _postprocess(self, hidden_states: Tensor, *, labels: Tensor | None = None, **others: Any) -> Any:
        """Megatron's hook behind the last layer; with labels, the output layer and loss may be one."""
        if not (self.post_process and self.acceleration.fused_loss) or labels is None:
            return super()._postprocess(hidden_states=hidden_states, labels=labels, **others)
        layer = self.output_layer
        weight = self.shared_embedding_or_output_weight() if layer.weight is None else layer.weight
        group = parallel_state.get_tensor_model_parallel_group()
        # The two ways in which the gradient of the hidden states is summed over the ranks.
        whole = (
            gather_from_sequence_parallel_region(hidden_states, group=group)
            if self.config.sequence_parallel
            else copy_to_tensor_model_parallel_region(hidden_states, group=group)
        )  # [s, b, h]
        function = (
            blocked_cross_entropy
            if self.acceleration.cpu_kernels
            else partial(linear_cross_entropy, compile=self.acceleration.compile)
        )
        losses = function(
            whole.flatten(0, 1),
            weight,
            labels.transpose(0, 1).flatten(),
            first=parallel_state.get_tensor_model_parallel_rank() * weight.shape[0],
            vocabulary_size=self.true_vocabulary_size,
            z_loss=self.z_loss,
            group=group,
            accumulate=self.acceleration.accumulate,
        )
        objective, entropy = (part.view(whole.shape[:2]).transpose(0, 1) for part in losses)
        return objective, entropy

    def sharded_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """With empty extra state, as plain layers have it: checkpoints of all backends are alike.

        transformer-engine's is the history of fp8 scales; its delayed recipe builds it anew in a few steps.
        """
        state = super().sharded_state_dict(*arguments, **options)
        for name, item in state.items():
            if name.endswith("_extra_state"):
                item.data = None
        return state

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every token from labels [b, s] and this rank's logits [s, b, v]."""
        group = parallel_state.get_tensor_model_parallel_group()
        objective, entropy = vocabulary_parallel_loss(
            logits,
            labels.transpose(0, 1).contiguous(),
            first=parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1],
            vocabulary_size=self.true_vocabulary_size,
            z_loss=self.z_loss,
            group=group,
        )
        return objective.transpose(0, 1), entropy.transpose(0, 1)


def transformer_config(
    spec: ModelSpec,
    parallel: ParallelConfig,
    *,
    precision: str = "fp32",
    recompute: str = "none",
    recompute_layers: int | None = None,
    acceleration: Acceleration = REFERENCE,
) -> TransformerConfig:
    """Megatron's configuration of a model and its layout."""
    half = precision != "fp32"
    recomputations: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective"},
        "full": {
            "recompute_granularity": "full",
            # Each layer on its own; "block" takes the first so many of a chunk.
            "recompute_method": "uniform" if recompute_layers is None else "block",
            "recompute_num_layers": recompute_layers or 1,
        },
    }
    config = TransformerConfig(
        num_layers=spec.layers,
        hidden_size=spec.hidden_size,
        ffn_hidden_size=spec.ffn_size,
        num_attention_heads=spec.heads,
        num_query_groups=spec.kv_heads,
        kv_channels=spec.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=spec.norm_epsilon,
        gated_linear_unit=True,
        activation_func=_activation(spec, fused=acceleration.compile),
        add_bias_linear=spec.mlp_bias,
        add_qkv_bias=spec.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        # With two stages the neighbour before and behind is the same rank, and batched messages of the
        # interleaved schedule would meet the wrong receiver.
        batch_p2p_comm=parallel.virtual_pipeline is None,
        overlap_p2p_comm=parallel.virtual_pipeline is not None,
        # Waiting for a message is enough since torch 1.13 (pytorch#82450); Megatron would stop the host for the device.
        batch_p2p_sync=False,
        pipeline_dtype=torch.bfloat16 if half else torch.float32,
        params_dtype=torch.bfloat16 if half else torch.float32,
        bf16=half,
        use_cpu_initialization=not has_gpu(),
        perform_initialization=True,
        attention_softmax_in_fp32=True,
        attention_backend=AttnBackend.unfused,
        masked_softmax_fusion=False,
        # Megatron's SwiGLU and GeGLU are functions for torch's compiler.
        bias_activation_fusion=acceleration.compile
        or (acceleration.cpu_kernels and spec.activation == "silu"),
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=acceleration.accumulate,
        deterministic_mode=acceleration.deterministic,
        layernorm_zero_centered_gamma=spec.norm_offset == 1.0,  # of transformer-engine's norms
        fp8="hybrid" if acceleration.fp8_recipe else None,  # e4m3 forward, e5m2 gradients
        fp8_recipe=acceleration.fp8_recipe or "delayed",
        # Gradients are sums over tokens, divided once by the tokens of the whole global batch: exact
        # with masked labels, whatever the layout.
        calculate_per_token_loss=True,
        **recomputations[recompute],
    )
    config.acceleration = acceleration
    config.masks = BlockMasks()
    config.norm_offset = spec.norm_offset
    config.sliding_window = spec.sliding_window
    config.rotary = RotaryPositions(spec)
    return config


def _activation(spec: ModelSpec, *, fused: bool) -> Any:
    if spec.activation == "silu":
        return F.silu
    return F.gelu if fused else _gelu_tanh  # Megatron's fused GeGLU approximates by tanh too


def _gelu_tanh(value: Tensor) -> Tensor:
    return F.gelu(value, approximate="tanh")


def layer_spec(spec: ModelSpec, acceleration: Acceleration) -> Any:
    """Megatron's specification of a layer: its modules for a backend, with our attention core in each.

    Norm weights have the same names in the checkpoints of all backends: transformer-engine's, since the
    plain layers' specification maps theirs to them.
    """
    if acceleration.backend == "transformer_engine":
        layer = get_gpt_layer_with_transformer_engine_spec()
    else:
        layer = get_gpt_layer_local_spec(normalization="RMSNorm")
        layer.submodules.input_layernorm = RMSNorm
        layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = SelfAttentionCore
    if not spec.qkv_bias == spec.output_bias == spec.mlp_bias:
        attention.linear_qkv = _with_bias(attention.linear_qkv, spec.qkv_bias)
        attention.linear_proj = _with_bias(attention.linear_proj, spec.output_bias)
    return layer


def _with_bias(base: Any, bias: bool) -> Any:
    """A linear layer that has a bias or none, whatever Megatron asks for.

    Megatron has one switch for the biases of the attention output and of the feed-forward layer.
    """

    def initialise(self: Any, *arguments: Any, **options: Any) -> None:
        base.__init__(self, *arguments, **{**options, "bias": bias})

    return type(base.__name__, (base,), {"__init__": initialise})


def build_model(
    spec: ModelSpec,
    parallel: ParallelConfig,
    *,
    precision: str = "fp32",
    recompute: str = "none",
    recompute_layers: int | None = None,
    z_loss: float = 0.0,
    acceleration: Acceleration = REFERENCE,
) -> list[TrainingModel]:
    """The chunks of the model that this rank holds: one, or one for each virtual pipeline stage.

    Megatron's process groups must exist. Weights are random (Megatron's own initialisation).
    """
    prepare_megatron(acceleration)
    config = transformer_config(
        spec,
        parallel,
        precision=precision,
        recompute=recompute,
        recompute_layers=recompute_layers,
        acceleration=acceleration,
    )
    chunks = []
    for stage in range(parallel.virtual_pipeline or 1):
        virtual_stage = stage if parallel.virtual_pipeline else None
        chunks.append(_build_chunk(spec, parallel, config, virtual_stage, z_loss))
    return chunks


def _build_chunk(
    spec: ModelSpec,
    parallel: ParallelConfig,
    config: TransformerConfig,
    virtual_stage: int | None,
    z_loss: float,
) -> TrainingModel:
    layer = layer_spec(spec, config.acceleration)
    layers = get_num_layers_to_build(config, vp_stage=virtual_stage)
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=True) and virtual_stage in (None, 0)
    last = parallel_state.is_pipeline_last_stage(ignore_virtual=True) and (
        virtual_stage is None or virtual_stage == (parallel.virtual_pipeline or 1) - 1
    )
    model = TrainingModel(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm),
        vocab_size=padded_vocabulary(spec.vocabulary_size, parallel.tensor),
        max_sequence_length=spec.max_positions,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=spec.tied_embeddings,
        position_embedding_type="none",  # the attention core rotates
        vp_stage=virtual_stage,
    )
    model.true_vocabulary_size = spec.vocabulary_size
    model.z_loss = z_loss
    model.acceleration = config.acceleration
    if first and config.acceleration.cpu_kernels and parallel.tensor == 1:
        rows = model.embedding.word_embeddings
        rows.forward = partial(embedding, rows.weight)
    if first and spec.embedding_scale != 1.0:
        _scale_embedding(model.embedding, spec.embedding_scale)
    return model


def _scale_embedding(embedding: torch.nn.Module, scale: float) -> None:
    """Multiply what the embedding returns; the factor is rounded to the dtype, as transformers does."""

    def scaled(_module: torch.nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * torch.tensor(scale, dtype=output.dtype, device=output.device)

    embedding.register_forward_hook(scaled)
