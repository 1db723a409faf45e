"""Rows that an extended vocabulary adds to the embedding and output matrices.

``pieces.tsv`` of the tokenizer says, for each added id, into which base tokens the old tokenizer
cuts the piece. Rows are computed in fp32 from the base matrix, a block at a time, reading only the
base rows that are needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.errors import DataError

if TYPE_CHECKING:
    import torch

PIECES_NAME = "pieces.tsv"
_HEADER = ["id", "piece", "score", "base_ids"]
_BLOCK_BYTES = 64 << 20


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


def tokenizer_size(tokenizer_dir: Path) -> int:
    """Number of ids of a tokenizer directory, added tokens included.

    Raises:
        DataError: no tokenizer there.
    """
    path = tokenizer_dir / "tokenizer.json"
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary: Any = content["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        added = (token["id"] for token in content.get("added_tokens", []))
        return 1 + max((*ids, *added), default=-1)
    path = tokenizer_dir / "tokenizer.model"
    if path.is_file():
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
    raise DataError("no tokenizer here", where=tokenizer_dir, expected="tokenizer.json or tokenizer.model")


class NewRows:
    """New rows of either matrix.

    Args:
        read: ``read(name, start, stop)`` gives rows of a base matrix.
        base_rows: rows of the base matrices.
        pieces: the added pieces.
        init: see :class:`pretrain.convert_config.GraftConfig`.
        seed: of the gaussian samples.

    Raises:
        DataError: a piece is made of base ids that the base does not have.
    """

    def __init__(
        self,
        read: Callable[[str, int, int], torch.Tensor],
        base_rows: int,
        pieces: Sequence[Piece],
        init: str,
        seed: int,
    ) -> None:
        self._read, self._base_rows, self._pieces, self._init, self._seed = (
            read,
            base_rows,
            pieces,
            init,
            seed,
        )
        self.first_id = pieces[0].id if pieces else 1 << 62
        # Rows above the first new id are padding of the base matrix and carry no meaning.
        self._known_rows = min(base_rows, self.first_id)
        self._norms: dict[str, list[float]] = {}
        self._average = cache(self._compute_average)
        self._factor = cache(self._compute_factor)
        for piece in pieces:
            if piece.base_ids and not 0 <= min(piece.base_ids) <= max(piece.base_ids) < self._known_rows:
                raise DataError(
                    "an added piece is made of ids the base does not have",
                    where=f"{PIECES_NAME}, id {piece.id}",
                    got=list(piece.base_ids),
                    expected=f"ids below {self._known_rows}",
                )

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """fp32 rows of the new ids ``start`` to ``stop`` of the matrix ``name``: [stop - start, h]."""
        import torch

        result = torch.stack([self._row(name, piece) for piece in self._select(start, stop)])
        self._norms.setdefault(name, []).extend(result.norm(dim=1).tolist())
        return result

    def _select(self, start: int, stop: int) -> Sequence[Piece]:
        return self._pieces[start - self.first_id : stop - self.first_id]

    def _row(self, name: str, piece: Piece) -> torch.Tensor:
        import torch

        if self._init == "gaussian":
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + piece.id)
            average = self._average(name)
            noise = torch.randn(average.shape, generator=generator)
            return average + self._factor(name) @ noise
        if self._init == "average" or not piece.base_ids:
            return self._average(name)
        ids = piece.base_ids[:1] if self._init == "copy_first" else piece.base_ids
        return torch.stack([self._read(name, index, index + 1)[0].float() for index in ids]).mean(dim=0)

    def _blocks(self, name: str) -> Iterator[torch.Tensor]:
        width = self._read(name, 0, 1).shape[1]
        step = max(1, _BLOCK_BYTES // (4 * width))
        for start in range(0, self._known_rows, step):
            yield self._read(name, start, min(start + step, self._known_rows)).float()

    def _compute_average(self, name: str) -> torch.Tensor:
        """Mean of the known rows: [h]."""
        total = sum(block.double().sum(dim=0) for block in self._blocks(name))
        assert not isinstance(total, int)
        return (total / self._known_rows).float()

    def _compute_factor(self, name: str) -> torch.Tensor:
        """Square root of the covariance of the known rows: [h, h]."""
        import torch

        average = self._average(name)
        width = average.shape[0]
        covariance = torch.zeros((width, width), dtype=torch.float32)
        for block in self._blocks(name):
            centred = block - average
            covariance.addmm_(centred.T, centred)
        covariance /= self._known_rows
        # Eigenvalues, not Cholesky: with fewer rows than columns the covariance is singular.
        values, vectors = torch.linalg.eigh(covariance)
        return vectors * values.clamp(min=0).sqrt()

    def norms(self) -> dict[str, dict[str, float]]:
        """Per matrix, mean length of the base's rows and mean, least and greatest length of the new."""
        result: dict[str, dict[str, float]] = {}
        for name, values in self._norms.items():
            base = [block.norm(dim=1).sum().item() for block in self._blocks(name)]
            result[name] = {
                "base_mean": math.fsum(base) / self._known_rows,
                "new_mean": math.fsum(values) / len(values),
                "new_min": min(values),
                "new_max": max(values),
            }
        return result
