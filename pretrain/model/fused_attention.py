"""Attention on a GPU: flash kernels through SDPA, flex_attention for windows and document boundaries.

Keys and values of grouped queries are not repeated, and no mask is held as a tensor of s x s scores'
size: flex_attention skips the blocks that a window or a boundary leaves empty.

Shapes: b micro batch, n query heads, g key/value heads, q queries, k keys, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tsugiki.pretrain.model.kernels import compiled

_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""In this order: cuDNN's kernels use Hopper's own instructions, torch's flash kernels do not."""

_FLEX_WIDTH, _FLEX_LENGTH = 16, 128
"""Smallest head width that flex_attention's kernels take, and their block of queries."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """[b, n, s, d] and twice [b, g, s, d] to [b, n, s, d]; every query sees the keys up to its own."""
    grouped = query.shape[1] != key.shape[1]
    if not query.is_cuda:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )
    with sdpa_kernel(_BACKENDS, set_priority=True):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )


def mask_function(start: int, window: int | None, documents: Tensor | None) -> MaskFunction:
    """What flex_attention asks for every pair: may query `start + q` see key `k`?

    Args:
        start: position of the first query.
        window: tokens a position may look back at, itself included.
        documents: number of every token's document, [b, k].
    """

    def allowed(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = query + start
        seen = key <= position
        if window is not None:
            seen = seen & (key > position - window)
        if documents is not None:
            seen = seen & (documents[batch, position] == documents[batch, key])
        return seen

    return allowed


class BlockMasks:
    """Block masks, made once for all layers of a micro batch."""

    def __init__(self) -> None:
        self._documents: Tensor | None = None
        self._masks: dict[tuple[Any, ...], BlockMask] = {}

    def get(
        self, queries: int, start: int, window: int | None, documents: Tensor | None, device: torch.device
    ) -> BlockMask:
        """The mask of queries at positions start, start + 1, ... over all keys up to the last of them."""
        if documents is not self._documents:
            # A view of the same batch is made anew in every layer: compare what it is a view of.
            base = None if documents is None else documents._base
            if base is None or self._documents is None or base is not self._documents._base:
                self._masks.clear()
            self._documents = documents
        key = (queries, start, window, documents is not None, device)
        if key not in self._masks:
            batch = None if documents is None else documents.shape[0]
            self._masks[key] = create_block_mask(
                mask_function(start, window, documents), batch, None, queries, start + queries, device=device
            )
        return self._masks[key]


def takes_blocks(query: Tensor) -> bool:
    """Whether flex_attention can train on queries [b, n, q, d]: its gradients need a GPU."""
    return query.is_cuda and query.shape[3] >= _FLEX_WIDTH and query.shape[2] >= _FLEX_LENGTH


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """[b, n, q, d] and twice [b, g, k, d] to [b, n, q, d]."""
    attend: Any = compiled(flex_attention) if query.is_cuda else flex_attention
    result: Tensor = attend(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return result
