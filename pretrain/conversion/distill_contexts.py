"""Contexts for Token Distillation: snippets of the corpus that hold new pieces, in both vocabularies.

A context is kept in ids of the extended tokenizer. In the base's vocabulary it is the same text with each
new piece cut into its ``base_ids``, so the last of these is the position whose state the new piece has to
match, and every other token stands for itself. New pieces of a BPE are merged after all of the base's, so
this is how the base's own tokenizer cuts the text.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.progress import Progress
from tsugiki.experiment.text.batches import text_batches
from tsugiki.experiment.text.tokenizer_files import open_tokenizer
from tsugiki.pretrain.conversion.new_rows import Piece
from tsugiki.pretrain.convert_config import DistillationConfig

if TYPE_CHECKING:
    import torch

Ids = NDArray[np.int32]
_BATCH_CHARACTERS = 500_000
_HASH_RANGE = 1 << 32


class Expansion:
    """The base tokens that a token of the extended vocabulary stands for.

    Args:
        pieces: the added pieces, ascending without gaps.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.first_id = pieces[0].id
        counts = [len(piece.base_ids) for piece in pieces]
        self._counts = np.array(counts, np.int64)  # [N]
        self._starts = np.cumsum([0, *counts])[:-1]  # [N]
        self._flat = np.array([index for piece in pieces for index in piece.base_ids], np.int32)

    def lengths(self, ids: Ids) -> NDArray[np.int64]:
        """Number of base tokens of each token: 1 of a base token, 0 of a reserved piece."""
        new = ids >= self.first_id
        return np.where(new, self._counts[np.where(new, ids - self.first_id, 0)], 1)

    def expand(self, ids: Ids) -> Ids:
        """The same text in tokens of the base."""
        lengths = self.lengths(ids)
        result = np.repeat(ids, lengths)
        position = np.arange(len(result)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        new = result >= self.first_id
        result[new] = self._flat[self._starts[result[new] - self.first_id] + position[new]]
        return result


@dataclass(frozen=True)
class Contexts:
    """What was found in the corpus.

    Attributes:
        snippets: ids of the extended tokenizer, without BOS.
        counts: snippets that hold each piece, by its position among the added: [N].
        start_ids: what the tokenizer puts in front of a text (BOS), if anything.
    """

    snippets: list[Ids]
    counts: NDArray[np.int64]
    start_ids: list[int]


def find_contexts(
    corpus_dir: Path, tokenizer_dir: Path, pieces: Sequence[Piece], config: DistillationConfig, seed: int
) -> Contexts:
    """Search training documents, never held-out ones, for contexts of the new pieces.

    Documents are read in the order of the corpus; where a language has more text than wanted, a document is
    taken by the hash of its id. At the first token of a document that is a piece with too few contexts, the
    snippet around it is taken, and the search goes on behind the snippet.

    Raises:
        DataError: no text, no text that holds a new piece, or an unreadable tokenizer.
    """
    index = CorpusIndex.load(corpus_dir)
    sizes = {
        language: sum(source.train_bytes for source in index.sources if source.language == language)
        for language in index.languages
    }
    if not any(sizes.values()):
        raise DataError(
            "the corpus has no training text to learn new rows from", where=corpus_dir,
            got=f"languages: {', '.join(index.languages) or 'none'}",
            fix="add sources to corpus.sources, or set graft.init to mean",
        )  # fmt: skip
    tokenizer = open_tokenizer(tokenizer_dir, special_tokens_in_text=False).fast
    search = _Search(pieces, config)
    wanted = {language: min(size, config.corpus_bytes_per_language) for language, size in sizes.items()}
    with Progress("graft: contexts", sum(wanted.values()) / 1e6, "MB") as progress:
        texts = chain.from_iterable(
            _draw(index, corpus_dir, language, size, sizes[language], seed)
            for language, size in wanted.items()
        )
        for batch in text_batches(texts, _BATCH_CHARACTERS):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                search.read(np.array(encoding.ids, np.int32))
            size = sum(len(text.encode()) for text in batch)
            progress.advance(size / 1e6, f"{len(search.snippets):,} found")
            if search.done:
                break
    if not search.snippets:
        raise DataError(
            "no training text holds any of the new pieces", where=corpus_dir,
            got=f"{sum(wanted.values()):,} bytes in {', '.join(index.languages)}; {len(pieces):,} pieces",
            expected="text in the languages that the vocabulary was extended for",
            fix="add such sources to corpus.sources, raise graft.distillation.corpus_bytes_per_language, "
            "or set graft.init to mean",
        )  # fmt: skip
    start = tokenizer.encode("", add_special_tokens=True).ids
    return Contexts(search.snippets, search.counts, list(start))


class _Search:
    def __init__(self, pieces: Sequence[Piece], config: DistillationConfig) -> None:
        self._expansion, self._length = Expansion(pieces), config.context_tokens
        # A piece longer than a snippet has no context, and a reserved one stands for nothing.
        possible = np.array([0 < len(piece.base_ids) <= self._length for piece in pieces])
        self._wanted = np.where(possible, config.contexts_per_piece, 0)
        self.snippets: list[Ids] = []
        self.counts = np.zeros(len(pieces), np.int64)

    @property
    def done(self) -> bool:
        """Whether every piece has its contexts."""
        return bool((self.counts >= self._wanted).all())

    def read(self, ids: Ids) -> None:
        """Take snippets of one document."""
        first = self._expansion.first_id
        lengths = self._expansion.lengths(ids)
        ends = np.cumsum(lengths)
        begins = ends - lengths
        done_until = 0
        for at in np.flatnonzero(ids >= first).tolist():
            piece = ids[at] - first
            if at < done_until or self.counts[piece] >= self._wanted[piece]:
                continue
            # The piece in the middle; at the start of a document, what is behind it is longer.
            begin = max(0, int(begins[at]) - (self._length - int(lengths[at])) // 2)
            low = int(np.searchsorted(begins, begin))
            high = int(np.searchsorted(ends, int(begins[low]) + self._length, side="right"))
            snippet = ids[low:high]
            found = np.unique(snippet[snippet >= first]) - first
            self.counts[found] += 1
            self.snippets.append(snippet[lengths[low:high] > 0])
            done_until = high


def _draw(
    index: CorpusIndex, corpus_dir: Path, language: str, wanted: int, size: int, seed: int
) -> Iterator[str]:
    """Texts of training documents of a language, about the wanted bytes of all its bytes."""
    for record in index.documents(corpus_dir, "train", language=language):
        key = zlib.crc32(f"{seed}\0{record.get('id', '')}".encode())
        text = record["text"]
        if text and key * size < wanted * _HASH_RANGE:
            yield text


def collate(
    snippets: Sequence[Ids], start_ids: Sequence[int], expansion: Expansion
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of contexts in both vocabularies, padded on the right, where a causal model never looks.

    Returns:
        ids of the extended vocabulary [B, S], ids of the base [B, T], for each of the former the position
        of the last base token that it stands for [B, S], and which of the former are not padding [B, S].
    """
    import torch

    extended = [np.concatenate([np.array(start_ids, np.int32), ids]) for ids in snippets]
    rows = [
        (ids, expansion.expand(ids), np.cumsum(expansion.lengths(ids)) - 1) for ids in extended
    ]  # (ids, base ids, ends)
    width, base_width = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    new, base, ends = (
        torch.zeros((len(rows), size), dtype=torch.long) for size in (width, base_width, width)
    )
    real = torch.zeros((len(rows), width), dtype=torch.bool)
    for number, (ids, base_ids, last) in enumerate(rows):
        new[number, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        base[number, : len(base_ids)] = torch.from_numpy(base_ids.astype(np.int64))
        ends[number, : len(ids)] = torch.from_numpy(last)
        real[number, : len(ids)] = True
    return new, base, ends, real
