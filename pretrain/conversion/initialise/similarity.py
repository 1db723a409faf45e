"""``similarity``: half the mean of the base tokens, half that of the nearest pieces.

FOCUS (arXiv 2305.14481) mixes base rows by similarity in a fastText space trained on target text; the graft sees no
text, so similarity is measured in the base's own space instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS, BaseRows, averaged

if TYPE_CHECKING:
    from torch import Tensor

_NEIGHBOURS = 8
_CHUNK_ROWS = 1024


@INITIALISATIONS.register("similarity")
def similarity(base: BaseRows, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
    """Half a piece's own mean, half the mean of its nearest pieces by cosine, weighted by softmax: [N, H].

    Pieces that share base tokens have near means; averaging over them takes out what is accidental in one
    segmentation. Rows without base tokens neither give nor take.
    """
    import torch

    own = averaged(base, pieces)
    real = torch.tensor([index for index, ids in enumerate(pieces) if len(ids)])
    if len(real) < 2:
        return own
    result = own.clone()
    unit = torch.nn.functional.normalize(own[real], dim=1)  # [R, H], R: pieces with base tokens
    neighbours = min(_NEIGHBOURS, len(real) - 1)
    for start in range(0, len(real), _CHUNK_ROWS):
        cosine = unit[start : start + _CHUNK_ROWS] @ unit.T  # [chunk, R]
        at = torch.arange(cosine.shape[0])
        cosine[at, at + start] = -torch.inf  # not itself
        best, index = cosine.topk(neighbours, dim=1)  # [chunk, neighbours]
        share = torch.softmax(best / 0.1, dim=1).unsqueeze(2)
        nearby = (own[real[index]] * share).sum(dim=1)  # [chunk, H]
        result[real[start : start + _CHUNK_ROWS]] = (
            0.5 * own[real[start : start + _CHUNK_ROWS]] + 0.5 * nearby
        )
    return result
