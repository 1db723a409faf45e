"""Initial values of the embedding and output rows that a vocabulary extension adds.

V: rows of the base vocabulary, N: added rows, H: hidden size. Each function works on one matrix; the graft
calls it for the input embedding and, where the model does not tie them, for the output matrix alike.

All methods but ``random`` keep a new row in the convex hull of old rows or in their distribution, so that its
logit is neither extreme nor the same for every context (arXiv 2407.05841).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from tsugiki.experiment.errors import ConfigError, DataError

Method = Literal["mean", "weighted", "multivariate", "similarity", "random"]
"""How a new row is made.

``mean``: average of the rows of the piece's base tokens.
``weighted``: the same, weighted by ``weights`` (length of the token's text, or frequency).
``multivariate``: drawn from the normal distribution with mean and covariance of the base, as in transformers.
``similarity``: half the mean of the base tokens, half a softmax-weighted mean of the added pieces nearest to
    it. FOCUS (arXiv 2305.14481) mixes base rows by similarity in a fastText space trained on target
    text; the graft sees no text, so similarity is measured in the base's own space instead.
``random``: N(0, 0.02), an ablation that captures the softmax.
"""

RowReader = Callable[[Sequence[int]], Tensor]
"""Given base token ids, their rows [len(ids), H]: lets a matrix stay on disk."""

_RANDOM_STANDARD_DEVIATION = 0.02
_NEIGHBOURS = 8
_CHUNK_ROWS = 1024


def initialise_rows(
    base: Tensor | RowReader,
    pieces: Sequence[Sequence[int]],
    method: Method = "mean",
    seed: int = 1234,
    *,
    weights: Sequence[Sequence[float]] | None = None,
    base_rows: int | None = None,
) -> Tensor:
    """New rows for added pieces.

    Args:
        base: the matrix of the base model [V, H], or a function that reads rows of it.
        pieces: base token ids of each added piece (``base_ids`` of pieces.tsv); empty for reserved rows,
            which get the mean of all the other new rows.
        method: how, see :data:`Method`.
        seed: of random draws; the same seed gives the same rows.
        weights: for ``weighted``, one weight per base token of every piece; by default tokens count by
            position, later ones more: in a causal model the last token of a word carries most of its meaning.
        base_rows: V, needed for ``multivariate`` when ``base`` is a function.

    Returns:
        [N, H] in float32.

    Raises:
        DataError: a piece names a row that the base does not have, or the base holds non-finite values.
        ConfigError: unknown method, or weights that do not fit.
    """
    if method not in get_args(Method):
        raise ConfigError(
            "unknown initialisation",
            where="graft.init",
            got=method,
            expected=f"one of {', '.join(get_args(Method))}",
        )
    read = _reader(base) if isinstance(base, Tensor) else base
    if not pieces:
        return torch.zeros(0, read([0]).shape[1])
    if method == "weighted":
        new = _averaged(read, pieces, _checked(weights, pieces))
    elif method == "mean":
        new = _averaged(read, pieces, None)
    elif method == "similarity":
        new = _similar(_averaged(read, pieces, None), pieces)
    elif method == "multivariate":
        rows = base.shape[0] if isinstance(base, Tensor) else base_rows
        if rows is None:
            raise ConfigError("multivariate needs the number of base rows", where="graft.init")
        new = _multivariate(read, rows, len(pieces), seed)
    else:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(pieces), read([0]).shape[1])
        new = torch.randn(shape, generator=generator) * _RANDOM_STANDARD_DEVIATION
    if method not in ("random", "multivariate"):
        _fill_reserved(new, pieces)
    if not bool(torch.isfinite(new).all()):
        raise DataError(
            "the base matrix holds values that are not finite", fix="download the base model again"
        )
    return new


def _reader(matrix: Tensor) -> RowReader:
    def read(ids: Sequence[int]) -> Tensor:
        if len(ids) and (min(ids) < 0 or max(ids) >= matrix.shape[0]):
            raise DataError(
                "an added piece is made of a token that the base model does not have",
                got=f"id {max(ids)}",
                expected=f"ids below {matrix.shape[0]}",
                fix="use the tokenizer that was extended from this very base",
            )
        return matrix[torch.as_tensor(list(ids), dtype=torch.long)].float()  # [len(ids), H]

    return read


def _averaged(
    read: RowReader, pieces: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None
) -> Tensor:
    """[N, H] weighted means of base rows; zero rows for pieces without base tokens."""
    counts = torch.tensor([len(ids) for ids in pieces])  # [N]
    rows = read(
        [index for ids in pieces for index in ids]
    ).float()  # [S, H], S: all base tokens of all pieces
    owner = torch.repeat_interleave(torch.arange(len(pieces)), counts)  # [S]
    if weights is None:
        weight = torch.ones(len(owner))
    else:
        weight = torch.tensor([value for item in weights for value in item], dtype=torch.float32)
    sums = torch.zeros(len(pieces), rows.shape[1]).index_add_(0, owner, rows * weight.unsqueeze(1))  # [N, H]
    total = torch.zeros(len(pieces)).index_add_(0, owner, weight)  # [N]
    # Divided once, at the end: shares such as 1/3 are rounded, which decides ties when rows become bf16.
    return sums / total.clamp(min=torch.finfo().tiny).unsqueeze(1)


def _checked(
    weights: Sequence[Sequence[float]] | None, pieces: Sequence[Sequence[int]]
) -> Sequence[Sequence[float]]:
    if weights is None:
        return [[float(position + 1) for position in range(len(ids))] for ids in pieces]
    if [len(item) for item in weights] != [len(ids) for ids in pieces]:
        raise ConfigError(
            "weights must name one number for every base token of every piece", where="graft.init"
        )
    if any(value <= 0 for item in weights for value in item):
        raise ConfigError("weights must be positive", where="graft.init")
    return weights


def _fill_reserved(new: Tensor, pieces: Sequence[Sequence[int]]) -> None:
    """Reserved rows get the mean of the others: never zero, which would give extreme gradients."""
    empty = torch.tensor([len(ids) == 0 for ids in pieces])
    if bool(empty.any()) and bool((~empty).any()):
        new[empty] = new[~empty].mean(dim=0)


def _multivariate(read: RowReader, rows: int, count: int, seed: int) -> Tensor:
    """Draws from the normal distribution of the base rows, whose moments are summed over chunks of rows."""
    total: Tensor | None = None
    products: Tensor | None = None
    for start in range(0, rows, _CHUNK_ROWS):
        chunk = read(range(start, min(start + _CHUNK_ROWS, rows))).double()  # [chunk, H]
        total = chunk.sum(0) if total is None else total + chunk.sum(0)
        product = chunk.T @ chunk  # [H, H]
        products = product if products is None else products + product
    assert total is not None and products is not None
    mean = total / rows
    covariance = products / rows - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # [H, H]: root @ root.T is the covariance
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (mean + noise @ root.T).float()  # [count, H]


def _similar(own: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Half a piece's own mean, half the mean of its nearest pieces by cosine, weighted by softmax.

    Pieces that share base tokens have near means; averaging over them takes out what is accidental in one
    segmentation. Rows without base tokens neither give nor take.
    """
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
