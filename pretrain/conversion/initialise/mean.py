"""``mean``: the mean of the rows of the base tokens a piece is made of.

It keeps a new row in the convex hull of old rows, so that its logit is neither extreme nor the same for every context
(arXiv 2407.05841).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS, BaseRows, averaged

if TYPE_CHECKING:
    from torch import Tensor


@INITIALISATIONS.register("mean", row_by_row=True)
def mean(base: BaseRows, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
    """Means of base rows [N, H]."""
    return averaged(base, pieces)
