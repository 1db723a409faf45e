"""``multivariate``: drawn from the normal distribution with the moments of the base rows (as transformers does)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS, BaseRows

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_ROWS = 1024


@INITIALISATIONS.register("multivariate", draws_reserved=True)
def multivariate(base: BaseRows, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
    """Draws [N, H]; the moments are summed over chunks of base rows."""
    import torch

    total: Tensor | None = None
    products: Tensor | None = None
    for start in range(0, base.count, _CHUNK_ROWS):
        chunk = base.read(range(start, min(start + _CHUNK_ROWS, base.count))).double()  # [chunk, H]
        total = chunk.sum(0) if total is None else total + chunk.sum(0)
        product = chunk.T @ chunk  # [H, H]
        products = product if products is None else products + product
    assert total is not None and products is not None
    mean = total / base.count
    covariance = products / base.count - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # [H, H]: root @ root.T is the covariance
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(pieces), len(mean), generator=generator, dtype=torch.float64)
    return (mean + noise @ root.T).float()
