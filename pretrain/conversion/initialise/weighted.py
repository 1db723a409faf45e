"""``weighted``: like the mean, later tokens counting more.

In a causal model the last token of a word carries most of its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS, BaseRows, averaged

if TYPE_CHECKING:
    from torch import Tensor


@INITIALISATIONS.register("weighted", row_by_row=True)
def weighted(base: BaseRows, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
    """Means of base rows [N, H], weighted 1, 2, 3, … in the order of the tokens."""
    return averaged(base, pieces, [[float(position + 1) for position in range(len(ids))] for ids in pieces])
