"""Norm, attention and rotary positions that Megatron's layers are built from here.

They run on CPU and GPU alike and need neither apex nor transformer-engine.

Shapes: s sequence (of this context-parallel rank), S whole sequence, b micro batch, h hidden size,
n query heads and g key/value heads of this tensor-parallel rank, d head width, c context-parallel ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pretrain.spec import ModelSpec


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm; its weight takes part in the gradient reduction of sequence parallelism.

    Megatron's torch norm refuses sequence parallelism because nothing marks its weight.

    Args:
        config: Megatron's configuration; `norm_offset` is read from it (1.0 for Gemma: x * (1 + w)).
        hidden_size: width of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.offset: float = getattr(config, "norm_offset", 0.0)
        self.weight = torch.nn.Parameter(
            torch.full((hidden_size,), 1.0 - self.offset, dtype=config.params_dtype)
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., h] to [..., h], in the dtype of the input."""
        weight = self.weight + self.offset if self.offset else self.weight
        return F.rms_norm(hidden, weight.shape, weight.to(hidden.dtype), self.eps)


class _GatherSequence(torch.autograd.Function):
    """All-gathers keys or values over the context-parallel ranks; gradients are summed back.

    The gathered chunks are put into the order of the sequence: rank r holds chunks r and 2c - 1 - r.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Any) -> Tensor:
        """[s, b, g, d] to [S, b, g, d]."""
        ranks = group.size()
        ctx.group = group
        gathered = [torch.empty_like(local) for _ in range(ranks)]
        torch.distributed.all_gather(gathered, local.contiguous(), group=group)
        halves = [part.chunk(2, dim=0) for part in gathered]
        return torch.cat([half[0] for half in halves] + [half[1] for half in reversed(halves)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """[S, b, g, d] to [s, b, g, d]."""
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total, group=ctx.group)
        chunks = total.chunk(2 * ctx.group.size(), dim=0)
        rank = ctx.group.rank()
        return torch.cat([chunks[rank], chunks[2 * ctx.group.size() - 1 - rank]]), None


class SelfAttentionCore(torch.nn.Module):
    """Scaled dot-product attention in Megatron's place for the attention core.

    Causal, with grouped queries, sliding window, document boundaries, and context parallelism by
    gathering keys and values (as Llama 3 was trained). The boundaries arrive as `attention_mask`: the
    document number of every token of the whole sequence, [b, S], or None.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        width = config.kv_channels or config.hidden_size // config.num_attention_heads
        scale: float = getattr(config, "rope_attention_factor", 1.0)
        # YaRN multiplies rotated queries and keys alike, so the scores by its square.
        self.scale = (softmax_scale or 1.0 / math.sqrt(width)) * scale * scale
        self.window: int | None = getattr(config, "sliding_window", None)
        self.context_ranks = config.context_parallel_size

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d]."""
        if self.context_ranks > 1:
            group = parallel_state.get_context_parallel_group()
            key = _GatherSequence.apply(key, group)
            value = _GatherSequence.apply(value, group)
            first, second = query.chunk(2, dim=0)
            rank, length = group.rank(), first.shape[0]
            output = torch.cat(
                [
                    self._attend(first, key, value, rank * length, attention_mask),
                    self._attend(
                        second, key, value, (2 * group.size() - 1 - rank) * length, attention_mask
                    ),
                ]
            )
        else:
            output = self._attend(query, key, value, 0, attention_mask)
        return output.reshape(*output.shape[:2], -1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, start: int, documents: Tensor | None
    ) -> Tensor:
        """Attention of the queries at positions start, start + 1, ... to all keys before them."""
        end = start + query.shape[0]
        mask = self._mask(start, end, documents, query.device)
        query, key, value = (
            part.permute(1, 2, 0, 3)  # [b, heads, length, d]
            for part in (query, key[:end], value[:end])
        )
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            # Repeated by hand: with enable_gqa the CPU falls back to an unfused kernel.
            key = key.repeat_interleave(groups, dim=1)
            value = value.repeat_interleave(groups, dim=1)
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scale
        )
        return output.permute(2, 0, 1, 3)  # [length, b, n, d]

    def _mask(self, start: int, end: int, documents: Tensor | None, device: torch.device) -> Tensor | None:
        """True where attention is allowed, [b or 1, 1, end - start, end]; None for plain causal."""
        if start == 0 and documents is None and (self.window is None or self.window >= end):
            return None
        queries = torch.arange(start, end, device=device)[:, None]
        keys = torch.arange(end, device=device)[None, :]
        mask = keys <= queries
        if self.window is not None:
            mask &= keys > queries - self.window
        if documents is None:
            return mask[None, None]
        same = documents[:, start:end, None] == documents[:, None, :end]
        return (mask[None] & same)[:, None]


class RotaryPositions(torch.nn.Module):
    """Angles of the rotary embedding from the Hugging Face settings, with optional position resets.

    Args:
        spec: rope base, head width and scaling.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.inverse_frequencies, self.attention_factor = rope_frequencies(spec)
        self.position_ids: Tensor | None = None
        """Positions [b, S] of the current micro batch where they restart at documents; else None."""
        self._plain: dict[tuple[int, str], Tensor] = {}

    def get_rotary_seq_len(
        self,
        inference_context: Any,
        transformer: Any,
        transformer_input: Tensor | None,
        transformer_config: TransformerConfig,
        *_: Any,
        **__: Any,
    ) -> int:
        """Length S of the whole sequence."""
        local = transformer.input_tensor if transformer.input_tensor is not None else transformer_input
        assert local is not None
        length = int(local.shape[0]) * transformer_config.context_parallel_size
        if transformer_config.sequence_parallel:
            length *= transformer_config.tensor_model_parallel_size
        return length

    def forward(self, length: int, **_: Any) -> Tensor:
        """Angles [s, 1 or b, 1, d] of this context-parallel rank's part of the sequence."""
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        if self.position_ids is not None:
            return _local_chunks(self._angles(self.position_ids.transpose(0, 1)))
        key = (length, str(device))
        if key not in self._plain:
            positions = torch.arange(length, device=device)[:, None]
            self._plain[key] = _local_chunks(self._angles(positions))
        return self._plain[key]

    def _angles(self, positions: Tensor) -> Tensor:
        """[S, b] to [S, b, 1, d]."""
        self.inverse_frequencies = self.inverse_frequencies.to(positions.device)
        angles = positions[..., None].float() * self.inverse_frequencies
        return torch.cat([angles, angles], dim=-1)[:, :, None, :]


def _local_chunks(whole: Tensor) -> Tensor:
    """The two chunks of the first dimension that belong to this context-parallel rank."""
    ranks = parallel_state.get_context_parallel_world_size()
    if ranks == 1:
        return whole
    rank = parallel_state.get_context_parallel_rank()
    chunks = whole.chunk(2 * ranks, dim=0)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]])


def rope_frequencies(spec: ModelSpec) -> tuple[Tensor, float]:
    """Inverse frequencies [d / 2] and the factor on rotated queries and keys.

    The formulas are those of transformers' `modeling_rope_utils.py`.
    """
    half = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    frequencies = 1.0 / (spec.rope_theta**half)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies, 1.0
    factor = float(scaling["factor"])
    kind = scaling["rope_type"]
    if kind == "linear":
        return frequencies / factor, 1.0
    if kind == "llama3":
        return _llama3(frequencies, factor, scaling), 1.0
    return _yarn(frequencies, factor, scaling, spec)


def _llama3(frequencies: Tensor, factor: float, scaling: dict[str, Any]) -> Tensor:
    """Long wavelengths are slowed by the factor, short ones kept, between them interpolated."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequencies
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = torch.where(wavelength > original / low, frequencies / factor, frequencies)
    medium = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(medium, between, scaled)


def _yarn(
    frequencies: Tensor, factor: float, scaling: dict[str, Any], spec: ModelSpec
) -> tuple[Tensor, float]:
    """NTK-by-parts interpolation and its attention temperature (arXiv 2309.00071)."""
    original = float(scaling.get("original_max_position_embeddings") or spec.max_positions)
    dimension, base = spec.head_dim, spec.rope_theta

    def correction(rotations: float) -> float:
        return dimension * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = correction(float(scaling.get("beta_fast") or 32))
    high = correction(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimension - 1)
    ramp = ((torch.arange(dimension // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    mixed = frequencies / factor * ramp + frequencies * (1 - ramp)
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    return mixed, float(attention)
