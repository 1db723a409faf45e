"""Whole conversations in sequences: none is cut by the end of a sequence, so no answer loses its prompt.

Conversations are taken in a random order and put into the first of the open sequences that has room (first fit); what
stays free is padding, which no loss counts. The order is a function of the seed, the source's name and the epoch.

Shapes: S sequence, n conversations of a sequence.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray
from torch import Tensor

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.chat_tokens import mark, unmark
from tsugiki.pretrain.training.samples.ledger import unread

_OPEN_ROWS = 64
"""Sequences that are filled at a time: a search through more of them finds little more room."""
_PADDING = mark(0, False)
Numbers = NDArray[numpy.int64]


@dataclass(frozen=True)
class Sample:
    """One sequence.

    Attributes:
        tokens: ids [S].
        labels: the next ids [S].
        loss_mask: 1.0 where the prediction counts [S].
        boundaries: document number and position of every token [2, S]; None = as the batch's layout finds them.
        reference: log-probabilities [n, 2] that the reference gives the answers of pairs, of which document 2k is the
            chosen and 2k + 1 the rejected one; None = no pairs.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    boundaries: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True)
class Packing:
    """What became of the conversations of a source in a run.

    Attributes:
        conversations: of the source; pairs where it holds pairs.
        sequences: that the run reads.
        padding_share: of their tokens.
        shortened: conversations whose end does not fit into a sequence.
        left_out: of which no learned token would be left; pairs that do not fit.
    """

    conversations: int
    sequences: int
    padding_share: float
    shortened: int
    left_out: int

    def __str__(self) -> str:
        return (
            f"{self.conversations:,} conversations, {self.sequences:,} sequences, {self.padding_share:.1%} padding, "
            f"{self.shortened:,} shortened, {self.left_out:,} left out"
        )


def pack(lengths: Sequence[int] | NDArray[Any], capacity: int) -> list[list[int]]:
    """Numbers of what goes into each row, by first fit; no length is above the capacity."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, row) of the open rows, the oldest first
    for number, length in enumerate(lengths):
        for place, (room, row) in enumerate(free):
            if room >= length:
                rows[row].append(number)
                free[place] = (room - int(length), row)
                break
        else:
            if len(free) == _OPEN_ROWS:
                free.remove(min(free))
            free.append((capacity - int(length), len(rows)))
            rows.append([number])
    return rows


def row_of(
    parts: Sequence[Numbers],
    length: int,
    *,
    apart: bool = True,
    reference: NDArray[numpy.float64] | None = None,
) -> Sample:
    """One sequence of whole conversations, the rest padding.

    Args:
        parts: stored numbers of each, together at most `length`.
        length: S.
        apart: each sees only itself and begins at position 0.
        reference: where the parts are pairs, chosen before rejected: log-probabilities [pairs, 2].
    """
    stored, following = (numpy.full(length, _PADDING, numpy.int64) for _ in range(2))
    documents, positions = (
        numpy.full(length, len(parts), numpy.int64),
        numpy.arange(length, dtype=numpy.int64),
    )
    end = 0
    for number, part in enumerate(parts):
        begin, end = end, end + len(part)
        stored[begin:end] = part
        following[begin : end - 1] = part[1:]  # what comes behind a conversation is not predicted from it
        documents[begin:end] = number
        positions[begin:end] -= begin
    positions[end:] -= end
    tokens, _ = unmark(torch.from_numpy(stored))
    labels, counts = unmark(torch.from_numpy(following))
    boundaries = torch.from_numpy(numpy.stack([documents, positions])) if apart else None
    compared = None if reference is None else torch.from_numpy(reference).float()
    return Sample(tokens, labels, counts.float(), boundaries, compared)


class PackedSamples:
    """The sequences of a source of conversations, in the order of a run.

    Args:
        prefix: of the indexed dataset.
        length: S.
        samples: sequences that the run takes.
        seed: decides the order.
        passes: over each conversation before the run; None = nothing was read. What was read less often comes first.
        apart: conversations of a sequence do not see each other.
        reference: of a source of pairs, two documents each: log-probabilities [pairs, 2]; None = conversations.

    Raises:
        DataError: no conversation can be learned from.
    """

    def __init__(
        self,
        prefix: Path,
        length: int,
        samples: int,
        seed: int,
        *,
        passes: Any | None = None,
        apart: bool = True,
        reference: NDArray[numpy.float64] | None = None,
    ) -> None:
        self._indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
        self._length, self._apart, self._reference = length, apart, reference
        self._together = 1 if reference is None else 2
        lengths = numpy.asarray(self._indexed.sequence_lengths, numpy.int64)
        lengths = lengths.reshape(-1, self._together).sum(axis=1)
        self.documents = len(lengths)
        long = numpy.flatnonzero(lengths > length)
        fits = numpy.ones(self.documents, bool)
        fits[[number for number in long if not self._is_learned_from(number)]] = False
        if not fits.any():
            raise DataError(
                "no conversation has its answers within train.sequence_length",
                where=prefix,
                got=f"{self.documents:,} of them, the shortest of {lengths.min(initial=0):,} tokens",
                fix="raise train.sequence_length",
            )
        self._lengths = numpy.minimum(lengths, length)
        name = zlib.crc32(prefix.name.encode())
        self._rows: list[NDArray[Any]] = []
        epoch = 0
        left = numpy.empty(0, numpy.int32) if passes is None else unread(passes)
        while len(self._rows) < samples:
            chosen = left if epoch == 0 and len(left) else numpy.arange(self.documents)
            chosen = chosen[fits[chosen]]
            order = numpy.random.default_rng([seed, name, epoch]).permutation(chosen)
            self._rows += [order[row] for row in pack(self._lengths[order].tolist(), length)]
            epoch += 1
        self._rows = self._rows[:samples]
        self.packing = Packing(
            self.documents,
            samples,
            1 - sum(int(self._lengths[row].sum()) for row in self._rows) / (max(samples, 1) * length),
            int(fits[long].sum()),
            int((~fits).sum()),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        parts = [part for number in row for part in self._parts(number)]
        reference = None if self._reference is None else self._reference[row]
        return row_of(parts, self._length, apart=self._apart, reference=reference)

    def passes(self, samples: int) -> Any:
        """Passes over each conversation in the first samples: [conversations]."""
        read = numpy.concatenate([numpy.empty(0, numpy.int64), *self._rows[:samples]]).astype(numpy.int64)
        return numpy.bincount(read, minlength=self.documents).astype(numpy.uint16)

    def _is_learned_from(self, number: int) -> bool:
        """Whether the beginning of what is too long has a learned token; half a pair is none."""
        return self._together == 1 and bool((self._parts(number)[0][1:] >= 0).any())

    def _parts(self, number: int) -> list[Numbers]:
        """Stored numbers of a conversation, as many as fit, or of both answers of a pair."""
        first = number * self._together
        return [
            numpy.asarray(self._indexed[part], numpy.int64)[: self._length]
            for part in range(first, first + self._together)
        ]
