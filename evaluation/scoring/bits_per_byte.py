"""Negative log-likelihood of documents under a model, and what follows from it.

Protocol: a document is ``[BOS] t1 … tn`` in the model's own tokens; t1 … tn are each scored exactly once,
the end of the document is not. A document longer than a window is read in windows that move on by
``stride`` tokens, each scoring only what none before it scored; the last one ends with the document.

    bits per byte = sum of nats / ln 2 / UTF-8 bytes of the text     comparable across vocabularies
    perplexity    = exp(sum of nats / tokens)                        comparable within one vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tsugiki.evaluation.scoring.heldout import Document
from tsugiki.evaluation.scoring.language_model import LanguageModel
from tsugiki.experiment.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Score:
    """One document under one model.

    Attributes:
        nats: negative log-likelihood of the document's tokens, natural logarithm.
        tokens: number of tokens scored.
        bytes: UTF-8 bytes of the text.
        unknown_tokens: tokens that stand for text the vocabulary cannot express.
    """

    nats: float
    tokens: int
    bytes: int
    unknown_tokens: int


def bits_per_byte(scores: Sequence[Score]) -> float:
    """Bits needed per UTF-8 byte of the documents together."""
    return sum(score.nats for score in scores) / math.log(2) / sum(score.bytes for score in scores)


def perplexity(scores: Sequence[Score]) -> float:
    """Exponential of the mean nats per token of the model's own vocabulary."""
    return math.exp(sum(score.nats for score in scores) / sum(score.tokens for score in scores))


class Window(NamedTuple):
    """Part of a document that one forward pass reads.

    ``ids[begin:end]`` goes in and predicts ``ids[begin + 1 : end + 1]``; the last ``scored`` of these count.
    """

    document: int
    begin: int
    end: int
    scored: int


def windows(document: int, targets: int, length: int, stride: int, given: int = 0) -> list[Window]:
    """Windows over a document with ``targets`` tokens behind the start token, the first ``given`` not scored.

    >>> windows(0, 5, length=4, stride=2)
    [Window(document=0, begin=0, end=4, scored=4), Window(document=0, begin=1, end=5, scored=1)]
    >>> windows(0, 5, length=4, stride=2, given=3)
    [Window(document=0, begin=1, end=5, scored=2)]
    """
    result: list[Window] = []
    done = given
    while done < targets:
        end = max(length, done + stride) if done == given else done + stride
        end = min(end, targets)
        result.append(Window(document, max(0, end - length), end, end - done))
        done = end
    return result


def score_documents(
    model: LanguageModel,
    documents: Sequence[Document],
    *,
    window: int,
    stride: int,
    given: float = 0.0,
    batch_bytes: int = 100_000_000,
    advance: Callable[[float], None] | None = None,
) -> list[Score]:
    """Score every document.

    Args:
        model: model and tokenizer.
        documents: texts.
        window: tokens of input per forward pass.
        stride: tokens by which windows move on, below ``window``.
        given: share of a document's tokens, rounded down, that is read and not scored; it counts neither in
            the nats nor in the tokens of its score.
        batch_bytes: memory for the logits of a batch.
        advance: called with the UTF-8 bytes finished.

    Raises:
        CheckpointError: the tokenizer makes ids that the model has no row for, or the loss is not finite.
    """
    import torch

    encoded: list[torch.Tensor] = []
    for document in documents:
        ids = model.tokenizer.encode(document.text)
        if ids and max(ids) >= model.vocabulary_size:
            raise CheckpointError(
                "the tokenizer makes a token that the model has no embedding for",
                where=model.directory,
                got=f"token {max(ids)} in document {document.identifier}",
                expected=f"ids below {model.vocabulary_size}",
            )
        encoded.append(torch.tensor([model.start_id, *ids], dtype=torch.long))
    planned = [
        item
        for position, ids in enumerate(encoded)
        for item in windows(position, len(ids) - 1, window, stride, int(given * (len(ids) - 1)))
    ]
    nats = [0.0] * len(documents)
    for batch in _batches(planned, batch_bytes // (4 * _COPIES * model.vocabulary_size)):
        for item, value in zip(batch, _score_batch(model, encoded, batch), strict=True):
            if not math.isfinite(value):
                raise CheckpointError(
                    "the loss is not finite",
                    where=model.directory,
                    got=f"{value} in document {documents[item.document].identifier}",
                    fix="evaluate in float32 or bfloat16, and check the weights",
                )
            nats[item.document] += value
        if advance is not None:
            advance(
                sum(
                    documents[item.document].bytes * item.scored / (len(encoded[item.document]) - 1)
                    for item in batch
                )
            )
    unknown = -1 if model.unknown_id is None else model.unknown_id
    return [
        Score(
            nats=nats[position],
            tokens=len(encoded[position]) - 1 - int(given * (len(encoded[position]) - 1)),
            bytes=document.bytes,
            unknown_tokens=int((encoded[position][1:] == unknown).sum()),
        )
        for position, document in enumerate(documents)
    ]


_COPIES = 3
"""Logits, their float32 copy and the log-probabilities are alive together."""


def _batches(planned: list[Window], positions: int) -> list[list[Window]]:
    """Group windows of like length so that rows x scored width stays within ``positions``."""
    ordered = sorted(planned, key=lambda item: (item.end - item.begin, item.scored), reverse=True)
    batches: list[list[Window]] = []
    first = 0
    for item in ordered:
        length = item.end - item.begin
        if batches:
            width = batches[-1][0].end - batches[-1][0].begin
            kept = width - min(first, length - item.scored)
            if (len(batches[-1]) + 1) * kept <= positions:
                first = min(first, length - item.scored)
                batches[-1].append(item)
                continue
        first = length - item.scored
        batches.append([item])
    return batches


def _score_batch(model: LanguageModel, encoded: list[torch.Tensor], batch: list[Window]) -> list[float]:
    """Nats of the scored tokens of each window."""
    import torch
    import torch.nn.functional as F

    width = batch[0].end - batch[0].begin
    first = min(item.end - item.begin - item.scored for item in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)  # [B, S]
    targets = torch.full((len(batch), width - first), -100, dtype=torch.long)  # [B, S - first]
    for row, item in enumerate(batch):
        length = item.end - item.begin
        document = encoded[item.document]
        ids[row, :length] = document[item.begin : item.end]
        targets[row, length - item.scored - first : length - first] = document[
            item.end + 1 - item.scored : item.end + 1
        ]
    logits = model.logits(ids.to(model.device), first)  # [B, S - first, V]
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.to(model.device).flatten(), ignore_index=-100, reduction="none"
    )
    sums: list[float] = losses.view_as(targets).double().sum(dim=1).tolist()
    return sums
