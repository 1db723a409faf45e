"""Writer of Megatron's indexed dataset, without importing Megatron: ``<prefix>.bin`` and ``<prefix>.idx``.

``.bin`` holds the token ids one after another. ``.idx``, little endian::

    9  bytes  b"MMIDIDX\\x00\\x00"
    8  bytes  version, 1
    1  byte   type of the ids: 8 = uint16, 4 = int32
    8  bytes  number of sequences n
    8  bytes  number of document boundaries, n + 1
    4n bytes  int32: length of each sequence in tokens
    8n bytes  int64: offset of each sequence in the .bin in bytes
    8n + 8    int64: 0 … n, sequence index at which each document begins (one sequence a document)

A file of n documents thus has 34 + 20 n + 8 bytes (megatron/core/datasets/indexed_dataset.py).
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tsugiki.experiment.files import atomic_file

TokenType = np.dtype[np.uint16] | np.dtype[np.int32]

_HEADER = b"MMIDIDX\x00\x00"
_TYPE_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
_UINT16_BELOW = 65500  # Megatron's DType.optimal_dtype: uint16 for fewer ids than this


def token_type(vocabulary_size: int) -> TokenType:
    """Smallest type Megatron uses for a vocabulary of this size."""
    return np.dtype(np.uint16) if vocabulary_size < _UINT16_BELOW else np.dtype(np.int32)


def write_index(path: Path, lengths: NDArray[np.int32], dtype: TokenType) -> None:
    """Write ``.idx`` for documents of these lengths in tokens."""
    offsets = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= dtype.itemsize
    with atomic_file(path) as file:
        file.write(_HEADER)
        file.write(struct.pack("<QBQQ", 1, _TYPE_CODES[dtype], len(lengths), len(lengths) + 1))
        file.write(lengths.astype("<i4").tobytes())
        file.write(offsets.astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def write_indexed(prefix: Path, documents: Iterable[Sequence[int]], vocabulary_size: int) -> tuple[int, int]:
    """Write a dataset of documents that are at hand; one is in memory at a time.

    Args:
        prefix: path without ``.bin``/``.idx``.
        documents: token ids of every document.
        vocabulary_size: decides the type of the ids.

    Returns:
        Documents and tokens written.
    """
    dtype = token_type(vocabulary_size)
    lengths: list[int] = []
    with atomic_file(prefix.with_name(prefix.name + ".bin")) as target:
        for ids in documents:
            target.write(np.asarray(ids, dtype).tobytes())
            lengths.append(len(ids))
    write_index(prefix.with_name(prefix.name + ".idx"), np.array(lengths, np.int32), dtype)
    return len(lengths), sum(lengths)


def concatenate(
    prefix: Path,
    parts: Sequence[Path],
    lengths: NDArray[np.int32],
    dtype: TokenType,
) -> None:
    """Join raw token files into a dataset: ``.bin`` first, then the ``.idx`` that makes it whole.

    Args:
        prefix: path without ``.bin``/``.idx``.
        parts: files of raw ids, in order.
        lengths: tokens of each document of all parts.
        dtype: type of the ids.
    """
    with atomic_file(prefix.with_name(prefix.name + ".bin")) as target:
        for part in parts:
            _append(target, part)
    write_index(prefix.with_name(prefix.name + ".idx"), lengths, dtype)


def _append(target: BinaryIO, part: Path) -> None:
    with part.open("rb") as source:
        shutil.copyfileobj(source, target, 1 << 22)
