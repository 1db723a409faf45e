"""Initial values of the embedding and output rows that a vocabulary extension adds.

V: rows of the base vocabulary, N: added rows, H: hidden size. Each function works on one matrix; the graft
calls it for the input embedding and, where the model does not tie them, for the output matrix alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from experiment.errors import ConfigError, DataError

Method = Literal["mean"]
RowReader = Callable[[Sequence[int]], Tensor]
"""Given base token ids, their rows [len(ids), H]: lets a matrix stay on disk."""


def initialise_rows(
    base: Tensor | RowReader, pieces: Sequence[Sequence[int]], method: Method = "mean", seed: int = 1234
) -> Tensor:
    """New rows for added pieces.

    Args:
        base: the matrix of the base model [V, H], or a function that reads rows of it.
        pieces: base token ids of each added piece (``base_ids`` of pieces.tsv); empty for reserved rows,
            which get the mean of all the other new rows.
        method: how.
        seed: of random draws.

    Returns:
        [N, H] in float32.

    Raises:
        DataError: a piece names a row that the base does not have.
        ConfigError: unknown method.
    """
    if method != "mean":
        raise ConfigError("unknown initialisation", where="graft.init", got=method, expected="mean")
    read = base if callable(base) and not isinstance(base, Tensor) else _reader(base)
    return _mean(read, pieces)


def _reader(matrix: Tensor) -> RowReader:
    def read(ids: Sequence[int]) -> Tensor:
        if ids and (min(ids) < 0 or max(ids) >= matrix.shape[0]):
            raise DataError(
                "an added piece is made of a token that the base model does not have",
                got=f"id {max(ids)}",
                expected=f"ids below {matrix.shape[0]}",
                fix="use the tokenizer that was extended from this very base",
            )
        return matrix[torch.as_tensor(list(ids), dtype=torch.long)].float()  # [len(ids), H]

    return read


def _mean(read: RowReader, pieces: Sequence[Sequence[int]]) -> Tensor:
    counts = torch.tensor([len(ids) for ids in pieces])  # [N]
    flat = [index for ids in pieces for index in ids]
    rows = read(flat).float()  # [sum of counts, H]
    owner = torch.repeat_interleave(torch.arange(len(pieces)), counts)
    new = torch.zeros(len(pieces), rows.shape[1]).index_add_(0, owner, rows)  # [N, H]
    new /= counts.clamp(min=1).unsqueeze(1)
    empty = counts == 0
    if empty.any() and (~empty).any():
        new[empty] = new[~empty].mean(dim=0)
    return new
