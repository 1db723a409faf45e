"""Writes Megatron's indexed dataset, one document a sequence, without importing Megatron.

`.bin` is the token ids of all documents, one after the other. `.idx` is

    9 bytes   "MMIDIDX\\0\\0"
    8         version, 1
    1         id type: 8 = uint16 (vocabularies up to 65,536), 4 = int32
    8         n, documents
    8         n + 1, entries of the document index
    4 n       tokens of each document (int32)
    8 n       byte offset of each document in .bin (int64)
    8 (n + 1) document index: 0, 1, ..., n (int64)

all little-endian (megatron/core/datasets/indexed_dataset.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy

_MAGIC = b"MMIDIDX\x00\x00"
_UINT16_VOCABULARY = 65_536


def write_indexed(prefix: Path, documents: Iterable[list[int]], vocabulary_size: int) -> tuple[int, int]:
    """Write `<prefix>.bin` and `<prefix>.idx`.

    Args:
        prefix: path without suffix.
        documents: token ids of every document.
        vocabulary_size: decides the width of an id.

    Returns:
        Documents and tokens written.
    """
    narrow = vocabulary_size <= _UINT16_VOCABULARY
    dtype = numpy.dtype("<u2" if narrow else "<i4")
    lengths = []
    with prefix.with_name(prefix.name + ".bin").open("wb") as data:
        for ids in documents:
            data.write(numpy.asarray(ids, dtype=dtype).tobytes())
            lengths.append(len(ids))
    sizes = numpy.asarray(lengths, dtype="<i4")
    offsets = numpy.zeros(len(lengths), dtype="<i8")
    numpy.cumsum(sizes[:-1].astype("<i8") * dtype.itemsize, out=offsets[1:])
    with prefix.with_name(prefix.name + ".idx").open("wb") as index:
        index.write(_MAGIC)
        index.write(struct.pack("<QBQQ", 1, 8 if narrow else 4, len(lengths), len(lengths) + 1))
        for part in (sizes, offsets, numpy.arange(len(lengths) + 1, dtype="<i8")):
            index.write(part.tobytes())
    return len(lengths), int(sizes.sum())
