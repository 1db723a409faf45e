"""``random``: N(0, 0.02), an ablation. Such rows capture the softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS, BaseRows

if TYPE_CHECKING:
    from torch import Tensor

_STANDARD_DEVIATION = 0.02


@INITIALISATIONS.register("random", draws_reserved=True)
def random(base: BaseRows, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
    """Independent normal draws [N, H]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn((len(pieces), base.width), generator=generator) * _STANDARD_DEVIATION
