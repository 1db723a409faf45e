"""``pieces.tsv``: the added rows and the base tokens their embeddings are initialised from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HEADER = "id\tpiece\tscore\tbase_ids"
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


@dataclass(frozen=True)
class AddedPiece:
    """One added row; a reserved row has no ``base_ids``."""

    id: int
    piece: str
    score: float
    base_ids: tuple[int, ...]


def write_pieces(path: Path, pieces: Iterable[AddedPiece]) -> None:
    """Write ``pieces.tsv``, ascending by id."""
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write(HEADER + "\n")
        for item in pieces:
            surface = "".join(_ESCAPES.get(character, character) for character in item.piece)
            ids = " ".join(map(str, item.base_ids))
            out.write(f"{item.id}\t{surface}\t{item.score:.9g}\t{ids}\n")
