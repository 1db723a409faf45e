"""Initial values of the embedding and output rows that a vocabulary extension adds: ``graft.init``.

V: rows of the base vocabulary, N: added rows, H: hidden size. An initialisation makes the rows of one matrix; the
graft calls it for the input embedding and, where the model does not tie them, for the output matrix alike. A file in
the folder ``initialise`` adds one; one's own is named by its address, ``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tsugiki.experiment.config.registry import Registry
from tsugiki.experiment.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

RowReader = Callable[[Sequence[int]], "Tensor"]
"""Given base token ids, their rows [len(ids), H]: lets a matrix stay on disk."""


@dataclass(frozen=True)
class BaseRows:
    """The matrix of the base model.

    Attributes:
        count: V.
        read: rows of the given ids in float32 [len(ids), H].
    """

    count: int
    read: RowReader

    @property
    def width(self) -> int:
        """H."""
        return int(self.read([0]).shape[1])


class RowMaker(Protocol):
    """Makes new rows of one matrix."""

    def __call__(self, base: BaseRows, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
        """New rows.

        Args:
            base: the matrix of the base model.
            pieces: base token ids of each added piece (``base_ids`` of pieces.tsv), at least one piece; no ids for
                reserved rows, whose result counts only where reserved rows are drawn.
            seed: of random draws; input and output matrix get different ones. The same seed gives the same rows.

        Returns:
            [N, H] in float32.
        """


INITIALISATIONS: Registry[RowMaker] = Registry("initialisation", ["tsugiki.pretrain.conversion.initialise"])


@dataclass(frozen=True)
class Initialisation:
    """An initialisation and what the graft must know of it: the facts it is registered with.

    Attributes:
        name: what ``graft.init`` says.
        make: makes the rows.
        row_by_row: it looks at one piece at a time, so it may be called for blocks of pieces, to keep the rows that it
            gathers few.
        draws_reserved: it makes reserved rows like the others; else they get the mean of all other new rows.
        learns_from_corpus: the rows are trained on text afterwards (``graft.distillation``).
    """

    name: str
    make: RowMaker
    row_by_row: bool = False
    draws_reserved: bool = False
    learns_from_corpus: bool = False


def find_initialisation(name: str, where: object = "graft.init") -> Initialisation:
    """The initialisation of a name or an address.

    Raises:
        ConfigError: no such one, with the known ones; or nothing callable at that address.
    """
    if ":" not in name:
        entry = INITIALISATIONS.entry(name, where)
        return Initialisation(name, entry.thing, **entry.facts)
    make = INITIALISATIONS.load_object(name, where)
    if not callable(make):
        raise ConfigError(
            "not an initialisation", where=where, got=f"{name}, which is a {type(make).__name__}",
            expected="a function of base rows, pieces and seed",
        )  # fmt: skip
    return Initialisation(name, make)


def initialise_rows(
    base: Tensor | BaseRows,
    pieces: Sequence[Sequence[int]],
    init: str | Initialisation = "mean",
    seed: int = 1234,
) -> Tensor:
    """New rows for added pieces.

    Args:
        base: the matrix of the base model [V, H], or how to read it.
        pieces: base token ids of each added piece; empty for reserved rows.
        init: how.
        seed: of random draws.

    Returns:
        [N, H] in float32.

    Raises:
        DataError: a piece names a row that the base does not have, the base holds non-finite values, or the
            initialisation returned something else than such rows.
        ConfigError: unknown initialisation.
    """
    import torch

    chosen = find_initialisation(init) if isinstance(init, str) else init
    if not isinstance(base, BaseRows):
        base = rows_of(base)
    if not pieces:
        return torch.zeros(0, base.width)
    new = chosen.make(base, pieces, seed)
    expected = (len(pieces), base.width)
    if not isinstance(new, torch.Tensor) or new.shape != expected or new.dtype != torch.float32:
        got = f"{list(new.shape)} {new.dtype}" if isinstance(new, torch.Tensor) else type(new).__name__
        raise DataError(
            "the initialisation gave something else than new rows",
            where=chosen.name,
            got=got,
            expected=f"{list(expected)} torch.float32",
        )
    if not chosen.draws_reserved:
        _fill_reserved(new, pieces)
    if not bool(torch.isfinite(new).all()):
        raise DataError(
            "the new rows hold values that are not finite", where=chosen.name,
            fix="if the base's are not finite either, download the base model again",
        )  # fmt: skip
    return new


def rows_of(matrix: Tensor) -> BaseRows:
    """Rows of a matrix in memory [V, H]."""
    import torch

    def read(ids: Sequence[int]) -> Tensor:
        if len(ids) and (min(ids) < 0 or max(ids) >= matrix.shape[0]):
            raise DataError(
                "an added piece is made of a token that the base model does not have",
                got=f"id {max(ids)}",
                expected=f"ids below {matrix.shape[0]}",
                fix="use the tokenizer that was extended from this very base",
            )
        return matrix[torch.as_tensor(list(ids), dtype=torch.long)].float()  # [len(ids), H]

    return BaseRows(int(matrix.shape[0]), read)


def averaged(
    base: BaseRows, pieces: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None
) -> Tensor:
    """Weighted means of the rows of the pieces' base tokens: [N, H]; zero rows for pieces without base tokens.

    Args:
        base: the matrix.
        pieces: base token ids of every piece.
        weights: one positive number for each of them; None is 1.
    """
    import torch

    counts = torch.tensor([len(ids) for ids in pieces])  # [N]
    # [S, H], S: all base tokens of all pieces
    rows = base.read([index for ids in pieces for index in ids]).float()
    owner = torch.repeat_interleave(torch.arange(len(pieces)), counts)  # [S]
    if weights is None:
        weight = torch.ones(len(owner))
    else:
        weight = torch.tensor([value for item in weights for value in item], dtype=torch.float32)
    sums = torch.zeros(len(pieces), rows.shape[1]).index_add_(0, owner, rows * weight.unsqueeze(1))  # [N, H]
    total = torch.zeros(len(pieces)).index_add_(0, owner, weight)  # [N]
    # Divided once, at the end: shares such as 1/3 are rounded, which decides ties when rows become bf16.
    return sums / total.clamp(min=torch.finfo().tiny).unsqueeze(1)


def _fill_reserved(new: Tensor, pieces: Sequence[Sequence[int]]) -> None:
    """Reserved rows get the mean of the others: never zero, which would give extreme gradients."""
    import torch

    empty = torch.tensor([len(ids) == 0 for ids in pieces])
    if bool(empty.any()) and bool((~empty).any()):
        new[empty] = new[~empty].mean(dim=0)
