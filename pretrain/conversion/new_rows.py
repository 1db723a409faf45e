"""Rows that an extended vocabulary adds to the embedding and output matrices.

``pieces.tsv`` of the tokenizer says, for each added id, into which base tokens the old tokenizer
cuts the piece; :mod:`tsugiki.pretrain.conversion.initialisation` makes rows of that, one matrix after the other.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.experiment.errors import DataError
from tsugiki.pretrain.conversion.initialisation import find_initialisation, initialise_rows

if TYPE_CHECKING:
    import torch

PIECES_NAME = "pieces.tsv"
_HEADER = ["id", "piece", "score", "base_ids"]
_BLOCK_PIECES = 1024
_NO_ID = 1 << 62


@dataclass(frozen=True)
class Piece:
    """An added vocabulary entry; ``base_ids`` is empty for reserved pieces."""

    id: int
    base_ids: tuple[int, ...]


def read_pieces(tokenizer_dir: Path) -> list[Piece]:
    """The added pieces of a tokenizer directory, ascending; none when there is no ``pieces.tsv``.

    Raises:
        DataError: malformed, or ids that do not ascend without gaps.
    """
    path = tokenizer_dir / PIECES_NAME
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="\n") as stream:
        lines = (line.rstrip("\n").split("\t") for line in stream)
        if (header := next(lines, None)) != _HEADER:
            raise DataError("unreadable piece table", where=path, got=header, expected="\t".join(_HEADER))
        try:
            pieces = [Piece(int(row[0]), tuple(map(int, row[3].split()))) for row in lines]
        except (ValueError, IndexError) as error:
            raise DataError("unreadable piece table", where=path, got=error) from error
    for previous, piece in pairwise(pieces):
        if piece.id != previous.id + 1:
            raise DataError(
                "ids of added pieces have a gap", where=path, got=piece.id, expected=previous.id + 1
            )
    return pieces


class NewRows:
    """New rows of both matrices, computed once a matrix.

    Args:
        read: ``read(name, start, stop)`` gives rows of a base matrix.
        base_rows: rows of the base matrices.
        pieces: the added pieces.
        init: name or address of an initialisation.
        seed: of random draws.

    Raises:
        DataError: a piece is made of base ids that the base does not have.
        ConfigError: no such initialisation.
    """

    def __init__(
        self,
        read: Callable[[str, int, int], torch.Tensor],
        base_rows: int,
        pieces: Sequence[Piece],
        init: str,
        seed: int,
    ) -> None:
        self._read, self._pieces, self._seed = read, pieces, seed
        self._init = find_initialisation(init)
        self.first_id = pieces[0].id if pieces else _NO_ID
        # Rows above the first new id are padding of the base matrix and carry no meaning.
        self._known_rows = min(base_rows, self.first_id)
        self._matrices: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        for piece in pieces:
            if piece.base_ids and not 0 <= min(piece.base_ids) <= max(piece.base_ids) < self._known_rows:
                raise DataError(
                    "an added piece is made of ids the base does not have",
                    where=f"{PIECES_NAME}, id {piece.id}",
                    got=list(piece.base_ids),
                    expected=f"ids below {self._known_rows}",
                    fix="use the tokenizer that was extended from this very base",
                )

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """fp32 rows of the new ids ``start`` to ``stop`` of the matrix ``name``: [stop - start, h]."""
        return self._matrix(name)[start - self.first_id : stop - self.first_id]

    def all_rows(self, name: str) -> torch.Tensor:
        """fp32 rows of all new ids of the matrix ``name``: [pieces, h]."""
        return self._matrix(name)

    def replace(self, name: str, rows: torch.Tensor) -> None:
        """Use these rows [pieces, h] for the matrix ``name`` instead of the initial ones."""
        with self._lock:
            self._matrices[name] = rows

    def _matrix(self, name: str) -> torch.Tensor:
        with self._lock:
            if name not in self._matrices:
                self._matrices[name] = self._compute(name)
            return self._matrices[name]

    def _compute(self, name: str) -> torch.Tensor:
        """All new rows of one matrix: [pieces, h] fp32."""
        import torch

        base = self._read(name, 0, self._known_rows)  # in its own type: the one tensor held whole
        made = [position for position, piece in enumerate(self._pieces) if piece.base_ids]
        # Input and output rows are drawn independently.
        seed = self._seed + zlib.crc32(name.encode())
        if not self._init.row_by_row:
            ids = [piece.base_ids for piece in self._pieces]
            result = initialise_rows(base, ids, self._init, seed)
        else:
            # Blocks of pieces keep the gathered rows few.
            result = torch.zeros((len(self._pieces), base.shape[1]))
            for begin in range(0, len(made), _BLOCK_PIECES):
                block = made[begin : begin + _BLOCK_PIECES]
                ids = [self._pieces[position].base_ids for position in block]
                result[block] = initialise_rows(base, ids, self._init, seed)
        reserved = [position for position, piece in enumerate(self._pieces) if not piece.base_ids]
        if reserved and not self._init.draws_reserved:
            # Never zero, which would give extreme gradients.
            result[reserved] = result[made].mean(dim=0) if made else base.float().mean(dim=0)
        return result

    def norms(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Per matrix, mean length of the base's rows and mean, least and greatest length of the new; {} without any."""
        result: dict[str, dict[str, float]] = {}
        for name in sorted(names) if self._pieces else ():
            total = 0.0
            for start in range(0, self._known_rows, _BLOCK_PIECES):
                block = self._read(name, start, min(start + _BLOCK_PIECES, self._known_rows))
                total += block.float().norm(dim=1).sum().item()
            lengths = self._matrix(name).norm(dim=1)
            result[name] = {
                "base_mean": total / self._known_rows,
                "new_mean": lengths.mean().item(),
                "new_min": lengths.min().item(),
                "new_max": lengths.max().item(),
            }
        return result
