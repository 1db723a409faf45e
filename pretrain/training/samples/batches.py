"""Training batches: Megatron's GPTDataset of every source, blended by the planned shares.

The n-th sample of a run is a function of the seed, the mixture and n alone; the layout decides only
which process reads it. Step k (from 0) trains on samples k * global_batch to (k + 1) * global_batch - 1.

Shapes: b micro batch, S whole sequence, s the part of this context-parallel rank.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from megatron.core import parallel_state
from torch import Tensor

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.files import sha256_file
from tsugiki.experiment.text.chat_tokens import unmark
from tsugiki.pretrain.config import Conversations, TrainConfig
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.training.preference.reference import LogProbabilities, load
from tsugiki.pretrain.training.run import Run, Stretch
from tsugiki.pretrain.training.samples.ledger import Passes
from tsugiki.pretrain.training.samples.order import OrderedSamples, document_count, passes_of
from tsugiki.pretrain.training.samples.packing import PackedSamples, Packing, Sample

_OPENING_THREADS = 1
References = Callable[[str, int], LogProbabilities]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a micro batch on one rank.

    Attributes:
        answers: which answer a prediction belongs to, 2 x pair + (0 chosen, 1 rejected), and 2P where to none: [b, s].
        reference: log-probabilities of the answers by the reference model [P, 2].
        lengths: tokens of the answers, those of all context-parallel ranks [P, 2].
    """

    answers: Tensor
    reference: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro batch on one rank.

    Attributes:
        tokens: [b, s].
        labels: the next tokens, [b, s].
        loss_mask: 1.0 where the prediction counts, [b, s].
        boundaries: document number and position of every token, [2, b, S]; None where neither the
            attention nor the positions restart at documents.
        pairs: of the preference objectives; None = there are none.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    boundaries: Tensor | None = None
    pairs: Pairs | None = None

    def record_stream(self, stream: Any) -> None:
        """Keep the memory, which another stream allocated, until this one is done with it."""
        pairs = () if self.pairs is None else (self.pairs.answers, self.pairs.reference, self.pairs.lengths)
        for part in (self.tokens, self.labels, self.loss_mask, self.boundaries, *pairs):
            if part is not None:
                part.record_stream(stream)


class _DatasetTokenizer:
    """What GPTDataset asks of a tokenizer. Its padding id is one that no text contains."""

    def __init__(self, mixture: Mixture) -> None:
        self.eod = mixture.eod_id
        self.pad = -1
        self.vocab_size = mixture.vocabulary_size
        self.unique_identifiers = {"vocabulary_size": mixture.vocabulary_size, "eod": mixture.eod_id}


def no_reference(_prefix: str, pairs: int) -> LogProbabilities:
    """Where the objective compares with no reference."""
    return numpy.zeros((pairs, 2))


def references_of(run: Run) -> References:
    """What the reference model says of the pairs of a run."""
    folder = run.job.reference_dir
    return no_reference if folder is None else lambda prefix, _: load(folder, prefix)


class TrainingData:
    """The samples of a run in their order.

    Args:
        mixture: sources and shares.
        tokens_dir: directory of the `.bin/.idx` pairs.
        cache_dir: where Megatron keeps its sample indices; shared by all ranks of all nodes.
        sequence_length: tokens per sample.
        samples: samples of the whole run.
        seed: decides the order.
        stretches: of the run with one mixture each; None = the mixture's own shares all along.
        passes: over the documents of each source before the run, by name; empty = nothing was read.
        conversations: as ``train.conversations``.
        references: makes the log-probabilities of a source of pairs [pairs, 2] from its prefix and number of pairs.

    Raises:
        DataError: a source is missing, unreadable or shorter than one sample.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokens_dir: Path,
        cache_dir: Path,
        *,
        sequence_length: int,
        samples: int,
        seed: int,
        stretches: Sequence[Stretch] | None = None,
        passes: Passes | None = None,
        conversations: Conversations = "stream",
        references: References = no_reference,
    ) -> None:
        from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

        self.mixture = mixture
        self.samples = samples
        packed = packed_sources(mixture, conversations)
        _check_sources(mixture, tokens_dir, sequence_length, packed)
        prefixes = [str(tokens_dir / source.prefix) for source in mixture.sources]
        weights = [source.share for source in mixture.sources]

        def configured(cache: Path) -> Any:
            return GPTDatasetConfig(
                random_seed=seed,
                sequence_length=sequence_length,
                # All of the training files: held-out text has files of its own.
                blend_per_split=[(prefixes, weights), None, None],
                path_to_cache=str(cache),
                num_dataset_builder_threads=_OPENING_THREADS,
                tokenizer=_DatasetTokenizer(mixture),
                reset_position_ids=False,
                reset_attention_mask=False,
                eod_mask_loss=False,
                create_attention_mask=False,
            )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("megatron.core.datasets").setLevel(logging.ERROR)
            self._dataset: Any
            if stretches is None and not passes and not packed:
                builder = BlendedMegatronDatasetBuilder(
                    GPTDataset, [samples, 0, 0], lambda: True, configured(cache_dir)
                )
                self._dataset = builder.build()[0]
            else:
                self._dataset = OrderedSamples(
                    mixture,
                    tokens_dir,
                    stretches or [Stretch(samples, tuple(weights))],
                    passes or {},
                    lambda name: configured(cache_dir / name),
                    sequence_length,
                    {
                        source.name: partial(
                            PackedSamples,
                            length=sequence_length,
                            seed=seed,
                            apart=conversations != "shared" or source.kind == "preference",
                            reference=references(source.prefix, source.documents // 2)
                            if source.kind == "preference"
                            else None,
                        )
                        for source in mixture.sources
                        if source.name in packed
                    },
                )

    @classmethod
    def of(cls, run: Run, passes: Passes) -> Self:
        """The samples of a run, given what was read before; every rank calls this."""
        return cls(
            run.mixture,
            run.job.tokens_dir,
            run.job.work_dir / "samples",
            sequence_length=run.config.sequence_length,
            samples=run.steps * run.config.global_batch,
            seed=run.job.seed,
            stretches=run.stretches,
            passes=passes,
            conversations=run.config.conversations,
            references=references_of(run),
        )

    @property
    def packing(self) -> dict[str, Packing]:
        """What became of the conversations of each source that is packed whole, by name."""
        sources = self._dataset.sources if isinstance(self._dataset, OrderedSamples) else []
        return {
            source.name: samples.packing
            for source, samples in zip(self.mixture.sources, sources, strict=False)
            if isinstance(samples, PackedSamples)
        }

    def facts(self, run: Run) -> dict[str, Any]:
        """What another run needs to know this order again, for checkpoint.json."""
        return {
            "mixture_sha256": sha256_file(run.job.tokens_dir / Mixture.file_name),
            "samples": self.samples,
            "sequence_length": run.config.sequence_length,
            "global_batch": run.config.global_batch,
            **({} if (kind := run.config.conversations) == "stream" else {"conversations": kind}),
        }

    def passes(self, consumed: Mapping[str, int], tokens_dir: Path) -> dict[str, Any]:
        """Passes over the documents of each source in its first samples, by name: [documents]."""
        return {
            source.name: passes_of(
                self._dataset, number, consumed[source.name], document_count(tokens_dir / source.prefix)
            )
            for number, source in enumerate(self.mixture.sources)
            if consumed.get(source.name)
        }

    def sample(self, index: int) -> Sample:
        """One sample."""
        item = self._dataset[index]
        if isinstance(item, Sample):
            return item
        tokens, _ = unmark(item["tokens"])
        labels, counts = unmark(item["labels"])
        return Sample(tokens, labels, item["loss_mask"] * counts)

    def samples_by_source(self, first: int, end: int) -> dict[str, int]:
        """How many of the samples first ... end - 1 come from each source."""
        names = [source.name for source in self.mixture.sources]
        chosen = getattr(self._dataset, "dataset_index", None)
        if chosen is None:  # a single source is not blended
            return {names[0]: end - first}
        counts = numpy.bincount(numpy.asarray(chosen[first:end]), minlength=len(names))
        return {name: int(count) for name, count in zip(names, counts, strict=True)}


def packed_sources(mixture: Mixture, conversations: Conversations) -> set[str]:
    """Names of the sources whose documents are packed whole."""
    kinds = ("preference",) if conversations == "stream" else ("preference", "instruction")
    return {source.name for source in mixture.sources if source.kind in kinds}


def _check_sources(mixture: Mixture, tokens_dir: Path, sequence_length: int, packed: set[str]) -> None:
    if not mixture.sources:
        raise DataError("the mixture has no source", where=tokens_dir)
    for source in mixture.sources:
        for suffix in (".bin", ".idx"):
            path = tokens_dir / (source.prefix + suffix)
            if not path.is_file() or path.stat().st_size == 0:
                raise DataError(
                    f"tokens of source '{source.name}' are missing or empty",
                    where=path,
                    fix="run `tsugiki tokens CONFIG` again",
                )
        if source.tokens <= sequence_length and source.name not in packed:
            raise DataError(
                f"source '{source.name}' is shorter than one training sequence",
                where=tokens_dir / source.prefix,
                got=f"{source.tokens:,} tokens",
                expected=f"more than train.sequence_length = {sequence_length:,}",
                fix="shorten train.sequence_length, or give the source more text",
            )


@dataclass(frozen=True)
class BatchLayout:
    """Which samples a rank reads and how it cuts them.

    Attributes:
        micro_batch: sequences per forward pass.
        global_batch: sequences per step, over all data-parallel ranks.
        reset_position_ids: positions restart at documents.
        reset_attention_mask: documents do not see each other.
        mask_end_of_document: no loss on what follows an end-of-document token.
        eod_id: the end-of-document token.
    """

    micro_batch: int
    global_batch: int
    eod_id: int
    reset_position_ids: bool = False
    reset_attention_mask: bool = False
    mask_end_of_document: bool = False

    @classmethod
    def of(cls, config: TrainConfig, eod_id: int) -> Self:
        """As the train section says."""
        return cls(
            micro_batch=config.micro_batch,
            global_batch=config.global_batch,
            eod_id=eod_id,
            reset_position_ids=config.reset_position_ids,
            reset_attention_mask=config.reset_attention_mask,
            mask_end_of_document=config.mask_end_of_document,
        )

    @property
    def micro_batches(self) -> int:
        """Forward passes of one rank per step."""
        return self.global_batch // (self.micro_batch * parallel_state.get_data_parallel_world_size())

    def build(self, samples: Sequence[Sample]) -> Batch:
        """A batch from whole sequences."""
        tokens, labels, loss_mask = (
            torch.stack([getattr(sample, part) for sample in samples])
            for part in ("tokens", "labels", "loss_mask")
        )
        ends = tokens == self.eod_id
        if self.mask_end_of_document:
            loss_mask = loss_mask.masked_fill(ends, 0.0)
        known = [sample.boundaries for sample in samples]
        resets = self.reset_attention_mask or self.reset_position_ids
        boundaries = None
        if resets or any(own is not None for own in known):
            boundaries = self._boundaries(ends)
            for row, own in enumerate(known):
                if own is not None:
                    boundaries[:, row] = own
        pairs = _pairs(samples, loss_mask)
        tokens, labels, loss_mask = (
            _to_device(_context_chunks(part)) for part in (tokens, labels, loss_mask.float())
        )
        return Batch(
            tokens,
            labels,
            loss_mask,
            boundaries=None if boundaries is None else _to_device(boundaries),
            pairs=pairs,
        )

    def _boundaries(self, ends: Tensor) -> Tensor:
        """[2, b, S] from the mask of end-of-document tokens [b, S]; the token after one starts a document."""
        count = torch.arange(ends.shape[1]).expand(ends.shape)
        documents, positions = torch.zeros_like(count), count
        if self.reset_attention_mask:
            documents = ends.cumsum(dim=1) - ends.long()
        if self.reset_position_ids:
            starts = torch.zeros_like(count)
            starts[:, 1:] = torch.where(ends[:, :-1], count[:, 1:], 0)
            positions = count - starts.cummax(dim=1).values
        return torch.stack([documents, positions])


def _pairs(samples: Sequence[Sample], loss_mask: Tensor) -> Pairs | None:
    """The pairs of whole sequences; None where they are none."""
    if all(sample.reference is None for sample in samples):
        return None
    # A sequence that only fills up a round of validation has none.
    references = [
        loss_mask.new_zeros(0, 2) if (own := sample.reference) is None else own for sample in samples
    ]
    reference = torch.cat(references)
    answers = torch.full(loss_mask.shape, reference.numel(), dtype=torch.int64)
    first = 0
    for row, (sample, own) in enumerate(zip(samples, references, strict=True)):
        if sample.boundaries is not None:
            known = sample.boundaries[0] < own.numel()
            answers[row] = torch.where(known, sample.boundaries[0] + first, reference.numel())
        first += own.numel()
    lengths = torch.bincount(answers[loss_mask > 0], minlength=reference.numel() + 1)[:-1].view_as(reference)
    return Pairs(_to_device(_context_chunks(answers)), _to_device(reference), _to_device(lengths))


def _context_chunks(whole: Tensor) -> Tensor:
    """The two chunks of [b, S] of this context-parallel rank: r and 2c - 1 - r, for an even load."""
    ranks = parallel_state.get_context_parallel_world_size()
    if ranks == 1:
        return whole
    rank = parallel_state.get_context_parallel_rank()
    chunks = whole.chunk(2 * ranks, dim=1)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]], dim=1)


def _to_device(tensor: Tensor) -> Tensor:
    """To the GPU from pinned memory, which the copy does not wait for; as it is where there is none."""
    if not has_gpu():
        return tensor
    return tensor.pin_memory().to(torch.cuda.current_device(), non_blocking=True)
