"""The order of samples where a run goes on from another, or its mixture changes on the way.

Every source is read in the order of Megatron's GPTDataset; one that was partly read by an earlier run begins with
one pass over the documents that are left, then comes whole. Stretches of the run blend the sources each by its own
shares and go on in each source where the stretch before has stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets import helpers
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.pretrain.training.run import Stretch
from tsugiki.pretrain.training.samples.ledger import Passes, documents_read, unread
from tsugiki.pretrain.training.samples.packing import PackedSamples


class SourceSamples:
    """The samples of one source: those of the documents left over from an earlier run, then all.

    Args:
        prefix: of the indexed dataset.
        samples: how many the run takes.
        passes: over each document before; None = nothing was read.
        config: makes Megatron's configuration for a cache folder of a name.
        tokens: fewest tokens of a sample.
    """

    def __init__(
        self,
        prefix: Path,
        samples: int,
        passes: Any | None,
        config: Callable[[str], Any],
        tokens: int,
    ) -> None:
        whole = config("whole")
        indexed = GPTDataset.build_low_level_dataset(str(prefix), whole)
        self.documents = GPTDataset.numel_low_level_dataset(indexed)
        self._parts: list[Any] = []
        left = numpy.empty(0, numpy.int32) if passes is None else unread(passes)
        if int(indexed.sequence_lengths[left].sum(dtype=numpy.int64)) > tokens:
            # Megatron names what it keeps without the chosen documents: they have a folder of their own.
            self._parts.append(_build(indexed, prefix, left, None, config(f"rest-{prefix.name}")))
        if (missing := samples - len(self)) > 0:
            every = numpy.arange(self.documents, dtype=numpy.int32)
            self._parts.append(_build(indexed, prefix, every, missing, whole))

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index: int) -> Any:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def passes(self, samples: int) -> Any:
        """Passes over each document in the first samples: [documents]."""
        counts = numpy.zeros(self.documents, numpy.uint16)
        for part in self._parts:
            taken = min(samples, len(part))
            counts += documents_read(part, taken, self.documents)
            samples -= taken
        return counts


def _build(indexed: Any, prefix: Path, documents: Any, samples: int | None, config: Any) -> Any:
    return BlendedMegatronDatasetBuilder.build_generic_dataset(
        GPTDataset, lambda: True, True, indexed, str(prefix), documents, samples, Split.train, config
    )


class OrderedSamples:
    """The samples of a run, as Megatron's BlendedDataset has them.

    Args:
        mixture: its sources.
        tokens_dir: their folder.
        stretches: of the run.
        passes: over the documents of each source before, by name.
        config: makes Megatron's configuration for a cache folder of a name.
        sequence_length: tokens of a sample.
        packed: makes the samples of a source that is packed whole, from its prefix, `samples` and `passes`; by name of
            the source.

    Attributes:
        dataset_index: number of the source of each sample: [samples].
        sources: by number; None where none of the samples is its.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokens_dir: Path,
        stretches: Sequence[Stretch],
        passes: Passes,
        config: Callable[[str], Any],
        sequence_length: int,
        packed: Mapping[str, Callable[..., PackedSamples]] | None = None,
    ) -> None:
        packed = packed or {}
        self.dataset_index, self._sample_index, counts = _blended(stretches, len(mixture.sources))
        self.sources: list[SourceSamples | PackedSamples | None] = []
        for source, count in zip(mixture.sources, counts, strict=True):
            prefix, before = tokens_dir / source.prefix, passes.get(source.name)
            if not count:
                self.sources.append(None)
            elif source.name in packed:
                self.sources.append(packed[source.name](prefix, samples=int(count), passes=before))
            else:
                self.sources.append(SourceSamples(prefix, int(count), before, config, sequence_length))

    def __getitem__(self, index: int) -> Any:
        source = self.sources[self.dataset_index[index]]
        assert source is not None
        return source[int(self._sample_index[index])]


def _blended(stretches: Sequence[Stretch], sources: int) -> tuple[Any, Any, Any]:
    """Source and its sample of every sample of a run, and how many samples each source gives."""
    counts = numpy.zeros(sources, numpy.int64)
    chosen, numbers = [], []
    for stretch in stretches:
        used = numpy.flatnonzero(stretch.shares)
        shares = [stretch.shares[number] for number in used]
        index = numpy.zeros(stretch.samples, numpy.int16)
        number = numpy.zeros(stretch.samples, numpy.int64)
        helpers.build_blending_indices(
            index, number, [share / sum(shares) for share in shares], len(used), stretch.samples, False
        )
        index = used[index].astype(numpy.int16)
        chosen.append(index)
        numbers.append(number + counts[index])
        counts = counts + numpy.bincount(index, minlength=sources)
    return numpy.concatenate(chosen), numpy.concatenate(numbers), counts


def passes_of(dataset: Any, name_number: int, samples: int, documents: int) -> Any:
    """Passes over the documents of a source, whatever Megatron or this module has built: [documents]."""
    if isinstance(dataset, OrderedSamples):
        source = dataset.sources[name_number]
        return numpy.zeros(documents, numpy.uint16) if source is None else source.passes(samples)
    # A single source is not blended.
    part = dataset.datasets[name_number] if hasattr(dataset, "datasets") else dataset
    return documents_read(part, samples, documents)


def document_count(prefix: Path) -> int:
    """Documents of an indexed dataset."""
    indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    return int(GPTDataset.numel_low_level_dataset(indexed))
