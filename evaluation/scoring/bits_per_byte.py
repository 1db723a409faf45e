"""Negative log-likelihood of documents under a model, and what follows from it.

Protocol: a document is ``[BOS] t1 … tn`` in the model's own tokens; t1 … tn are each scored exactly once,
the end of the document is not. A document longer than a window is read in windows that move on by
``stride`` tokens, each scoring only what none before it scored; the last one ends with the document.

    bits per byte = sum of nats / ln 2 / UTF-8 bytes of the text     comparable across vocabularies
    perplexity    = exp(sum of nats / tokens)                        comparable within one vocabulary
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tsugiki.evaluation.scoring.heldout import Document
from tsugiki.evaluation.scoring.language_model import LanguageModel
from tsugiki.evaluation.scoring.token_nats import token_nats
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
    workers: int = 1,
    advance: Callable[[float], None] | None = None,
    expect: Callable[[float, str], None] | None = None,
) -> list[Score]:
    """Score every document.

    Args:
        model: model and tokenizer.
        documents: texts.
        window: tokens of input per forward pass.
        stride: tokens by which windows move on, below ``window``.
        given: share of a document's tokens, rounded down, that is read and not scored; it counts neither in
            the nats nor in the tokens of its score.
        batch_bytes: memory for the logits of a batch, see :class:`EvaluateConfig`.
        workers: batches computed at a time on a CPU, each by one core: what is in a batch does not depend on
            it, so scores are the same to the bit. A GPU computes one batch at a time.
        advance: called with the UTF-8 bytes finished.
        expect: called once, behind the first batch, with the seconds that all will take and what they are.

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
    scorer = _Scorer(model, encoded, batch_bytes)
    batches = scorer.batches(planned)
    nats = [0.0] * len(documents)
    found = scorer.scores(batches, workers)
    begun = time.monotonic()
    for number, batch in enumerate(batches):
        values = next(found)
        for item, value in zip(batch, values, strict=True):
            if not math.isfinite(value):
                found.close()
                raise CheckpointError(
                    "the loss is not finite",
                    where=model.directory,
                    got=f"{value} in document {documents[item.document].identifier}",
                    fix="evaluate in float32 or bfloat16, and check the weights",
                )
            nats[item.document] += value
        if expect is not None and number == 0:
            share = scorer.work(batch) / sum(scorer.work(each) for each in batches)
            rounds = max(1.0, 1 / share / min(max(workers, 1), len(batches)))
            tokens = sum(item.scored for item in planned)
            expect((time.monotonic() - begun) * rounds, f"{tokens:,} tokens in {len(planned):,} windows")
        if advance is not None:
            advance(
                sum(
                    documents[item.document].bytes * item.scored / (len(encoded[item.document]) - 1)
                    for item in batch
                )
            )
    found.close()
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
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens read at a time: enough to fill the device; more is no faster and holds more activations."""
_PADDING = 1.15
"""Windows in a batch are at most this much longer than its shortest: what is read behind a window is wasted."""


class _Scorer:
    """Windows of documents under one model.

    Args:
        model: the model.
        encoded: a document's ids behind the start token.
        batch_bytes: memory for logits.
    """

    def __init__(self, model: LanguageModel, encoded: list[torch.Tensor], batch_bytes: int) -> None:
        self._model = model
        self._encoded = encoded
        self._bytes = batch_bytes
        self._weight = model.output_weight()
        outer = model.vocabulary_size * model.model.get_output_embeddings().weight.shape[1]
        embeddings = sum(
            matrix.weight.numel()
            for matrix in {model.model.get_input_embeddings(), model.model.get_output_embeddings()}
        )
        everything = sum(parameter.numel() for parameter in model.model.parameters())
        self._costs = (max(1, everything - embeddings), outer)

    def work(self, batch: list[Window]) -> float:
        """Multiplications, to tell how long a batch takes beside another."""
        inner, outer = self._costs
        return float(sum((item.end - item.begin) * inner + item.scored * outer for item in batch))

    def batches(self, planned: list[Window]) -> list[list[Window]]:
        """Windows of like length, the longest first; the same whatever computes them."""
        tokens = _BATCH_TOKENS.get(self._model.device.type, _BATCH_TOKENS["cuda"])
        positions = self._bytes // (4 * _COPIES * self._model.vocabulary_size)
        ordered = sorted(planned, key=lambda item: (item.end - item.begin, item.scored), reverse=True)
        batches: list[list[Window]] = []
        for item in ordered:
            if batches and self._fits(batches[-1], item, tokens, positions):
                batches[-1].append(item)
            else:
                batches.append([item])
        return batches

    def _fits(self, batch: list[Window], item: Window, tokens: int, positions: int) -> bool:
        width, length = batch[0].end - batch[0].begin, item.end - item.begin
        if self._model.reads_by_length:
            return False
        if self._weight is not None:
            return (len(batch) + 1) * width <= tokens and width <= _PADDING * length
        first = min(each.end - each.begin - each.scored for each in [*batch, item])
        return (len(batch) + 1) * (width - first) <= positions

    def scores(self, batches: list[list[Window]], workers: int) -> Generator[list[float]]:
        """Nats of the scored tokens of each window, a batch at a time and in order."""
        import torch

        if self._model.device.type != "cpu" or not batches:
            yield from map(self._score, batches)
            return
        # transformers writes such a model's frequencies anew for every input: one thread.
        at_a_time = 1 if self._model.reads_by_length else min(max(workers, 1), len(batches))
        before = torch.get_num_threads()
        # Threads that wait for one another within every product lose most of their time beside other work.
        pool = ThreadPoolExecutor(at_a_time, "score", initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(self._score, batches)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)

    def _score(self, batch: list[Window]) -> list[float]:
        import torch

        with torch.inference_mode():
            if self._weight is None:
                return self._score_logits(batch)
            hidden = self._model.hidden_states(self._inputs(batch))  # [B, S, h]
            parts = [
                hidden[row, item.end - item.begin - item.scored : item.end - item.begin]
                for row, item in enumerate(batch)
            ]
            targets = torch.cat([self._targets(item) for item in batch]).to(hidden.device)
            nats = token_nats(torch.cat(parts), self._weight, targets, self._bytes).double()
            return [float(part.sum()) for part in nats.cpu().split([item.scored for item in batch])]

    def _inputs(self, batch: list[Window]) -> torch.Tensor:
        """Ids [B, S], zeros behind a window: a causal model never looks there."""
        import torch

        ids = torch.zeros((len(batch), batch[0].end - batch[0].begin), dtype=torch.long)
        for row, item in enumerate(batch):
            ids[row, : item.end - item.begin] = self._encoded[item.document][item.begin : item.end]
        return ids.to(self._model.device)

    def _targets(self, item: Window) -> torch.Tensor:
        return self._encoded[item.document][item.end + 1 - item.scored : item.end + 1]

    def _score_logits(self, batch: list[Window]) -> list[float]:
        """For a model whose logits are more than a product."""
        import torch
        import torch.nn.functional as F

        width = batch[0].end - batch[0].begin
        first = min(item.end - item.begin - item.scored for item in batch)
        targets = torch.full((len(batch), width - first), -100, dtype=torch.long)  # [B, S - first]
        for row, item in enumerate(batch):
            length = item.end - item.begin
            targets[row, length - item.scored - first : length - first] = self._targets(item)
        logits = self._model.logits(self._inputs(batch), first)  # [B, S - first, V]
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets.to(logits.device).flatten(),
            ignore_index=-100,
            reduction="none",
        )
        sums: list[float] = losses.view_as(targets).double().sum(dim=1).tolist()
        return sums
