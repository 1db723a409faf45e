"""Norm, attention and rotary positions that Megatron's layers are built from here.

They run on CPU and GPU alike and need neither apex nor transformer-engine.

Shapes: s sequence (of this context-parallel rank), S whole sequence, b micro batch, h hidden size,
n query heads and g key/value heads of this tensor-parallel rank, d head width, c context-parallel ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.model import cpu_kernels
from tsugiki.pretrain.model.backend import REFERENCE, Acceleration
from tsugiki.pretrain.model.fused_attention import (
    BlockMasks,
    causal_attention,
    masked_attention,
    takes_blocks,
)
from tsugiki.pretrain.model.kernels import compiled, rms_norm, rotate_both


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm; its weight takes part in the gradient reduction of sequence parallelism.

    Megatron's torch norm refuses sequence parallelism because nothing marks its weight.

    Args:
        config: Megatron's configuration; `norm_offset` (1.0 for Gemma: x * (1 + w)) and `acceleration`
            are read from it.
        hidden_size: width of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.offset: float = getattr(config, "norm_offset", 0.0)
        self.norm = _norm_function(getattr(config, "acceleration", REFERENCE))
        self.weight = torch.nn.Parameter(
            torch.full((hidden_size,), 1.0 - self.offset, dtype=config.params_dtype)
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., h] to [..., h], in the dtype of the input."""
        weight = self.weight + self.offset if self.offset else self.weight
        result: Tensor = self.norm(hidden, weight, self.eps)
        return result


def _norm_function(acceleration: Acceleration) -> Callable[..., Any]:
    """[..., h], weight [h] and epsilon to [..., h]."""
    if acceleration.backend == "apex":
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine

        def fused(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
            result: Tensor = fused_rms_norm_affine(hidden, weight.to(hidden.dtype), weight.shape, epsilon)
            return result

        return fused
    return _variant(acceleration, rms_norm, cpu_kernels.rms_norm)


def _variant(
    acceleration: Acceleration, plain: Callable[..., Any], cpu: Callable[..., Any]
) -> Callable[..., Any]:
    if acceleration.cpu_kernels:
        return cpu
    return compiled(plain) if acceleration.compile else plain


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
    """Rotary positions and scaled dot-product attention in Megatron's place for the attention core.

    Causal, with grouped queries, sliding window, document boundaries, and context parallelism by
    gathering keys and values (as Llama 3 was trained). The rotation is done here, with sines and cosines
    computed once for all layers; Megatron computes them again in each. What restarts at documents
    arrives as `attention_mask`, [2, b, S] or None: the document number of every token of the whole
    sequence, and its position.
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
        self.rotary: RotaryPositions = config.rotary
        # YaRN multiplies rotated queries and keys alike, so the scores by its square.
        self.scale = (softmax_scale or 1.0 / math.sqrt(width)) * self.rotary.attention_factor**2
        self.window: int | None = config.sliding_window
        self.context_ranks = config.context_parallel_size
        acceleration: Acceleration = config.acceleration
        self.rotate = _variant(acceleration, rotate_both, cpu_kernels.rotate_both)
        self.fast = acceleration.attention == "fast"
        self.masks: BlockMasks = config.masks

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d]."""
        documents = positions = None
        if attention_mask is not None:
            documents, positions = attention_mask
        cosine, sine = self.rotary.angles(query.shape[0] * self.context_ranks, positions, query.dtype)
        query, key = self.rotate(query, key, cosine, sine)
        if self.context_ranks > 1:
            group = parallel_state.get_context_parallel_group()
            key = _GatherSequence.apply(key, group)  # type: ignore[no-untyped-call]
            value = _GatherSequence.apply(value, group)  # type: ignore[no-untyped-call]
            first, second = query.chunk(2, dim=0)
            rank, length = group.rank(), first.shape[0]
            output = torch.cat(
                [
                    self._attend(first, key, value, rank * length, documents),
                    self._attend(second, key, value, (2 * group.size() - 1 - rank) * length, documents),
                ]
            )
        else:
            output = self._attend(query, key, value, 0, documents)
        return output.reshape(*output.shape[:2], -1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, start: int, documents: Tensor | None
    ) -> Tensor:
        """Attention of the queries at positions start, start + 1, ... to all keys before them."""
        end = start + query.shape[0]
        query, key, value = (
            part.permute(1, 2, 0, 3)  # [b, heads, length, d]
            for part in (query, key[:end], value[:end])
        )
        attend = self._attend_fast if self.fast else self._attend_plain
        return attend(query, key, value, start, documents).permute(2, 0, 1, 3)  # [length, b, n, d]

    def _plain_causal(self, start: int, end: int, documents: Tensor | None) -> bool:
        return start == 0 and documents is None and (self.window is None or self.window >= end)

    def _attend_fast(
        self, query: Tensor, key: Tensor, value: Tensor, start: int, documents: Tensor | None
    ) -> Tensor:
        if self._plain_causal(start, key.shape[2], documents):
            return causal_attention(query, key, value, self.scale)
        if not takes_blocks(query):
            return self._attend_plain(query, key, value, start, documents)
        mask = self.masks.get(query.shape[2], start, self.window, documents, query.device)
        return masked_attention(query, key, value, mask, self.scale)

    def _attend_plain(
        self, query: Tensor, key: Tensor, value: Tensor, start: int, documents: Tensor | None
    ) -> Tensor:
        mask = self._mask(start, key.shape[2], documents, query.device)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            # Repeated by hand: with enable_gqa the CPU falls back to an unfused kernel.
            key = key.repeat_interleave(groups, dim=1)
            value = value.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scale
        )

    def _mask(self, start: int, end: int, documents: Tensor | None, device: torch.device) -> Tensor | None:
        """True where attention is allowed, [b or 1, 1, end - start, end]; None for plain causal."""
        if self._plain_causal(start, end, documents):
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


class RotaryPositions:
    """Sines and cosines of the rotary embedding from the Hugging Face settings.

    Args:
        spec: rope base, head width and scaling.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.inverse_frequencies, self.attention_factor = rope_frequencies(spec)
        self._plain: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def angles(self, length: int, positions: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [s, 1 or b, 1, d / 2] of this context-parallel rank's part of a sequence.

        Args:
            length: S.
            positions: [b, S] where they restart at documents; None where they count up.
            dtype: of the result; the angles are computed in fp32.
        """
        if positions is None:
            if (length, dtype) not in self._plain:
                count = torch.arange(length, device=torch.cuda.current_device())
                self._plain[length, dtype] = self._compute(count[:, None], dtype)
            return self._plain[length, dtype]
        return self._compute(positions.transpose(0, 1), dtype)

    def _compute(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """From [S, b]."""
        self.inverse_frequencies = self.inverse_frequencies.to(positions.device)
        angles = _local_chunks(positions[..., None].float() * self.inverse_frequencies)[:, :, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


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
