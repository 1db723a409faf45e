"""Loss and bits per byte on held-out documents, per language.

Held-out documents are concatenated in their order and cut into windows of one sequence length. Every
token of the text and every end of document is predicted once, from what stands before it in its window;
the token that begins a document is not text and is not counted.

Bits per byte = sum of losses in nats / ln 2 / bytes of the text those tokens are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core import parallel_state

from tsugiki.experiment.artefacts.mixture import Mixture, TokenSource, load_document_bytes
from tsugiki.experiment.text.chat_tokens import unmark
from tsugiki.pretrain.config import Conversations
from tsugiki.pretrain.training.guard import Watchdog
from tsugiki.pretrain.training.metrics.log import Log
from tsugiki.pretrain.training.preference.reference import LogProbabilities
from tsugiki.pretrain.training.run import Run
from tsugiki.pretrain.training.samples.batches import (
    Batch,
    BatchLayout,
    References,
    no_reference,
    references_of,
)
from tsugiki.pretrain.training.samples.packing import Sample, pack, row_of
from tsugiki.pretrain.training.step import TrainingStep

_APART = {"instruction": "chat", "preference": "pairs"}
"""Kinds of source that are validated by themselves, and what their language is called then."""


@dataclass(frozen=True)
class HeldoutText:
    """The held-out tokens of one language.

    Attributes:
        language: language code; ``<code>-chat`` for its conversations, ``<code>-pairs`` for its pairs of answers.
        documents: stored numbers of each.
        bytes: UTF-8 bytes of that text; None for conversations, of which only the answers count: their loss
            is over tokens and compares with nothing else.
        reference: of pairs, two documents each: log-probabilities [pairs, 2] by the reference model.
    """

    language: str
    documents: list[numpy.ndarray]
    bytes: int | None
    reference: LogProbabilities | None = None

    @property
    def stream(self) -> numpy.ndarray:
        """The documents one after the other."""
        return numpy.concatenate(self.documents)


def read_heldout(
    mixture: Mixture, tokens_dir: Path, limit: int, references: References = no_reference
) -> list[HeldoutText]:
    """Held-out text of every language that has some, about `limit` bytes each, sources evenly.

    Of a source the first documents are taken, as many whole ones as fit and at least one: the same text
    whatever the vocabulary. Conversations and pairs stand by themselves, also where there is text of their language.

    Args:
        mixture: the sources.
        tokens_dir: their folder.
        limit: bytes of a language.
        references: what the reference model says of pairs.

    Raises:
        DataError: the sizes of the documents are missing.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    texts = []
    groups: dict[tuple[str, str | None], list[TokenSource]] = {}
    for source in mixture.validated:
        if source.heldout_tokens > 0:
            groups.setdefault((source.language, _APART.get(source.kind)), []).append(source)
    for (language, apart), sources in groups.items():
        together = 2 if apart == "pairs" else 1
        parts: list[numpy.ndarray] = []
        compared: list[LogProbabilities] = []
        size = 0
        for source in sources:
            prefix = str(source.heldout_prefix)
            dataset = IndexedDataset(str(tokens_dir / prefix))
            total = load_document_bytes(tokens_dir, prefix).cumsum()[together - 1 :: together]
            count = max(1, int(numpy.searchsorted(total, limit // len(sources), side="right")))
            parts += [numpy.asarray(dataset[number], dtype=numpy.int64) for number in range(count * together)]
            size += int(total[count - 1])
            if apart == "pairs":
                compared.append(references(prefix, len(total))[:count])
        if size > 0:
            texts.append(
                HeldoutText(
                    f"{language}-{apart}" if apart else language,
                    parts,
                    None if apart else size,
                    numpy.concatenate(compared) if compared else None,
                )
            )
    return texts


@dataclass(frozen=True)
class Windows:
    """The windows of one language."""

    text: HeldoutText
    samples: list[Sample]

    @classmethod
    def of(
        cls, text: HeldoutText, sequence_length: int, bos_id: int | None, conversations: Conversations
    ) -> Windows:
        """As training sees them: pairs whole, conversations whole where it packs them, all else cut."""
        if text.reference is not None:
            return cls(text, _paired(text.documents, text.reference, sequence_length))
        if text.bytes is not None or conversations == "stream":
            return cls.cut(text, sequence_length, bos_id)
        whole = [document[:sequence_length] for document in text.documents]
        rows = pack([len(document) for document in whole], sequence_length)
        apart = conversations == "apart"
        return cls(
            text, [row_of([whole[number] for number in row], sequence_length, apart=apart) for row in rows]
        )

    @classmethod
    def cut(cls, text: HeldoutText, sequence_length: int, bos_id: int | None) -> Windows:
        """Windows that together predict every token but the first once; the last one is padded."""
        stream = torch.from_numpy(text.stream)
        count = max(1, -(-(len(stream) - 1) // sequence_length))
        padded = torch.zeros(count * sequence_length + 1, dtype=torch.int64)
        padded[: len(stream)] = stream
        mask = torch.zeros(count * sequence_length)
        mask[: len(stream) - 1] = 1.0
        padded, counts = unmark(padded)
        mask *= counts[1:]
        labels = padded[1:]
        if bos_id is not None:
            mask[labels == bos_id] = 0.0
        shape = (count, sequence_length)
        parts = (padded[:-1].reshape(shape), labels.reshape(shape), mask.reshape(shape))
        return cls(text, [Sample(*rows) for rows in zip(*parts, strict=True)])

    def batches(self, layout: BatchLayout) -> list[Batch]:
        """The micro batches of this rank; all ranks get equally many, empty ones added."""
        data_rank = parallel_state.get_data_parallel_rank()
        data_parallel_size = parallel_state.get_data_parallel_world_size()
        size = layout.micro_batch * data_parallel_size
        rounds = -(-len(self.samples) // size)
        # The interleaved pipeline schedule takes micro batches in groups of the pipeline's size.
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        rounds = -(-rounds // stages) * stages
        first = self.samples[0]
        empty = Sample(
            torch.zeros_like(first.tokens),
            torch.zeros_like(first.labels),
            torch.zeros_like(first.loss_mask),
            reference=None if first.reference is None else first.reference[:0],
        )
        samples = self.samples + [empty] * (rounds * size - len(self.samples))
        batches = []
        for number in range(rounds):
            begin = (number * data_parallel_size + data_rank) * layout.micro_batch
            batches.append(layout.build(samples[begin : begin + layout.micro_batch]))
        return batches

    def bits_per_byte(self, total_loss: float) -> float | None:
        """From the sum of losses in nats; None for conversations."""
        return None if self.text.bytes is None else total_loss / math.log(2) / self.text.bytes


def _paired(
    documents: list[numpy.ndarray], reference: LogProbabilities, sequence_length: int
) -> list[Sample]:
    """Sequences of the pairs that fit into one; those that do not are left out, as in training."""
    lengths = [len(a) + len(b) for a, b in zip(documents[::2], documents[1::2], strict=True)]
    fits = [pair for pair, length in enumerate(lengths) if length <= sequence_length]
    return [
        row_of(
            [documents[2 * fits[number] + side] for number in row for side in (0, 1)],
            sequence_length,
            reference=reference[[fits[number] for number in row]],
        )
        for row in pack([lengths[pair] for pair in fits], sequence_length)
    ]


def validate(run: Run, step: TrainingStep, number: int, log: Log, watchdog: Watchdog) -> None:
    """Evaluate the held-out text after step `number`; every rank calls this."""
    texts = read_heldout(
        run.mixture, run.job.tokens_dir, run.config.validation_bytes_per_language, references_of(run)
    )
    if not texts:
        return
    layout = BatchLayout.of(run.config, run.mixture.eod_id)
    line: dict[str, Any] = {"step": number, "consumed_tokens": run.tokens(number)}
    with step.evaluating():
        for text in texts:
            watchdog.alive()
            windows = Windows.of(
                text, run.config.sequence_length, run.mixture.bos_id, run.config.conversations
            )
            if not windows.samples:
                continue
            total, tokens, measures = step.evaluate(windows.batches(layout))
            line[f"validation/loss/{text.language}"] = total / max(tokens, 1.0)
            for name, value in measures.items():
                line[f"validation/{name}/{text.language}"] = value / max(tokens, 1.0)
            if (bits := windows.bits_per_byte(total)) is not None:
                line[f"validation/bits_per_byte/{text.language}"] = bits
    log.write(line)
    for measure, unit in (("bits_per_byte", "bits/byte"), ("loss", "loss"), ("accuracy", "accuracy")):
        shown = [
            f"{text.language} {found:.3f}"
            for text in texts
            if (text.bytes is None or measure != "loss")
            and (found := line.get(f"validation/{measure}/{text.language}")) is not None
        ]
        if shown:
            log.say(f"step {number}/{run.steps}  held-out {unit}: {'  '.join(shown)}")
