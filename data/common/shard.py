"""Input files, parts of them, and shards: the unit of work and of resumption."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A part of a file that is read on its own.

    Attributes:
        number: which part.
        count: of how many.
        start: first byte; only for files read by ranges of bytes.
        end: byte after the last one; None where records are counted instead.
        lines_before: lines before ``start``.
    """

    number: int
    count: int
    start: int = 0
    end: int | None = None
    lines_before: int = 0

    def has(self, number: int) -> bool:
        """Whether the record of this number, from 1, is in the part; ranges of bytes have all they meet.

        Multiplicative hashing, not a remainder: every third record of an archive is a page.
        """
        return self.end is not None or ((number * 0x9E3779B1 & 0xFFFFFFFF) * self.count >> 32) == self.number


@dataclass(frozen=True)
class InputFile:
    """A file of a source.

    Attributes:
        path: local path or fsspec URL.
        name: path relative to the fixed part of the source's pattern: goes into document ids.
        size_bytes: size on disk, compressed.
        modified: modification time in ns, for URLs a hash of what the store says about the file (its
            ETag, its time): a changed file is a changed plan.
        part: what is read of it, None for everything.
    """

    path: str
    name: str
    size_bytes: int
    modified: int
    part: Part | None = None


@dataclass(frozen=True)
class Shard:
    """Input files that are processed together.

    Attributes:
        rank: position among all shards.
        source: name of the source.
        number: position among the shards of the source.
        files: what to read, in order.
        hash_limit: with ``maximum_documents``, the largest :func:`name_hash` of a record that is
            read; None reads all.
    """

    rank: int
    source: str
    number: int
    files: tuple[InputFile, ...]
    hash_limit: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.size_bytes for file in self.files)

    @property
    def name(self) -> str:
        """``<source>/<number>``, the stem of the shard's files."""
        return f"{self.source}/{self.number:05d}"


def name_hash(*parts: str) -> int:
    """Stable 64-bit hash of a name, for choices that must not depend on order."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
