"""Norms of old and new rows of the vocabulary matrices, and of their gradients.

They show whether the added rows have caught up with those of the base, in length and in how hard they pull.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state

from tsugiki.pretrain.training.freeze import INPUT_NAME, OUTPUT_NAME, Place, optimizer_places


class RowNorms:
    """Frobenius norms over all rows of a kind, whatever the layout.

    Args:
        optimizer: Megatron optimizer, or a chain of them.
        models: model chunks, not wrapped.
        new_rows: first and end row that the extension added.
        tied: the input matrix is also the output matrix.
        distributed: the optimizer's state is divided over the data-parallel ranks.
    """

    def __init__(
        self, optimizer: Any, models: list[Any], new_rows: tuple[int, int], tied: bool, distributed: bool
    ) -> None:
        self._first, self._end = new_rows
        self._matrices = (INPUT_NAME,) if tied else (INPUT_NAME, OUTPUT_NAME)
        # With tied embeddings the last pipeline stage holds a copy, under the output layer's name.
        counts = distributed or parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        self._places = [
            place for place in optimizer_places(optimizer, models) if counts and place.name in self._matrices
        ]

    def measure(self) -> dict[str, float]:
        """`<parameter|gradient>_norm/<input|output>_embedding/<old|new>_rows`; every rank calls this.

        Call it when the gradients are reduced and not clipped, before the update. What is frozen has no
        gradient.
        """
        kinds = {"old_rows": (0, self._first), "new_rows": (self._first, self._end)}
        kinds = {kind: rows for kind, rows in kinds.items() if rows[1] > rows[0]}
        keys, sums = [], []
        for matrix in self._matrices:
            places = [place for place in self._places if place.name == matrix]
            for kind, rows in kinds.items():
                side = "input" if matrix == INPUT_NAME else "output"
                keys += [f"{what}_norm/{side}_embedding/{kind}" for what in ("parameter", "gradient")]
                sums += [_sum_of_squares(places, rows, gradient=gradient) for gradient in (False, True)]
        total = torch.stack(sums)
        torch.distributed.all_reduce(total)
        return dict(zip(keys, total.sqrt().tolist(), strict=True))


def _sum_of_squares(places: list[Place], rows: tuple[int, int], *, gradient: bool) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64, device=torch.cuda.current_device())
    for place in places:
        values = place.parameter.grad if gradient else place.parameter.detach()
        start, end = (place.element_of_row(row) for row in rows)
        if values is not None and end > start:
            total += torch.linalg.vector_norm(values.view(-1)[start:end], dtype=torch.float64).square()
    return total
