"""What happened to the documents of a shard: counts and samples per rule.

They belong to one shard and are written with its results, so the report of a run that was
killed and continued is the same as that of one that was not.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from datatrove.data import Document

from tsugiki.data.common.charset import encodable
from tsugiki.data.common.shard import name_hash

_SAMPLE_CHARACTERS = 2000


@dataclass
class RuleCount:
    """Documents and UTF-8 bytes that a rule removed."""

    documents: int = 0
    bytes: int = 0


@dataclass(order=True)
class _Sample:
    """A dropped record by what decides whether it is kept; the content breaks ties."""

    order: int
    key: str
    content: str
    record: dict[str, Any] = field(compare=False)


@dataclass
class DocumentStats:
    """Counts of one shard.

    Attributes:
        sample_limit: samples kept per rule: those of the smallest hash, so that neither order nor
            sharding decides.
        read: documents and bytes read (HTML and WARC: of markup).
        extracted: documents and bytes of text before any filter.
        kept: documents and bytes at the end of the shard's pipeline.
        dropped: per rule.
        counters: other sums, e.g. masked addresses.
        histograms: name -> bin -> documents.
        seconds: wall-clock per step (not part of the results).
        hits: every overlap with an evaluation set.
    """

    sample_limit: int = 20
    read: RuleCount = field(default_factory=RuleCount)
    extracted: RuleCount = field(default_factory=RuleCount)
    kept: RuleCount = field(default_factory=RuleCount)
    dropped: dict[str, RuleCount] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    hits: list[dict[str, Any]] = field(default_factory=list)
    _samples: dict[str, list[_Sample]] = field(default_factory=dict)

    def drop(
        self, rule: str, document: Document, detail: str | None = None, *, size_bytes: int | None = None
    ) -> None:
        """Count a removed document and perhaps keep it as a sample.

        Args:
            rule: what removed it.
            document: the document, or its beginning.
            detail: why.
            size_bytes: UTF-8 bytes of its text, where ``document`` is only the beginning.
        """
        count = self.dropped.setdefault(rule, RuleCount())
        count.documents += 1
        count.bytes += len(document.text.encode(errors="replace")) if size_bytes is None else size_bytes
        record = {"id": document.id, "text": encodable(document.text[:_SAMPLE_CHARACTERS]), "rule": rule}
        for key in ("url", "language", "language_found", "language_share"):
            if key in document.metadata:
                record[key] = document.metadata[key]
        if detail:
            record["detail"] = detail
        self._sample(rule, document.id, record)

    @property
    def excerpt_characters(self) -> int:
        """Characters of a dropped document that a sample keeps."""
        return _SAMPLE_CHARACTERS

    def bad_input(self, rule: str, where: str, detail: str, excerpt: str = "", size: int = 0) -> None:
        """Count a record that could not be read."""
        count = self.dropped.setdefault(rule, RuleCount())
        count.documents += 1
        count.bytes += size
        text = encodable(excerpt[:_SAMPLE_CHARACTERS])
        self._sample(rule, where, {"id": where, "text": text, "rule": rule, "detail": encodable(detail)})

    def _sample(self, rule: str, key: str, record: dict[str, Any]) -> None:
        if self.sample_limit == 0:
            return
        heap = self._samples.setdefault(rule, [])
        # A heap of the smallest hashes: the root is the largest of them, hence the negation.
        order = -name_hash(rule, key)
        if len(heap) == self.sample_limit and order < heap[0].order:
            return
        # Records may share an identifier; their content decides then, as their order depends on the shards.
        entry = _Sample(order, key, json.dumps(record, sort_keys=True, default=str), record)
        if len(heap) < self.sample_limit:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] = self.counters.get(name, 0) + amount

    def observe(self, histogram: str, label: str) -> None:
        """Add a document to a bin of a histogram."""
        bins = self.histograms.setdefault(histogram, {})
        bins[label] = bins.get(label, 0) + 1

    def observe_value(self, histogram: str, value: float, width: float = 0.05, last: float = 0.95) -> None:
        """Add a document to the bin of a number: bins of ``width`` from 0, the last one open."""
        low = min(int(value / width + 1e-9) * width, last)
        self.observe(histogram, f"{low:06.2f}")

    def samples(self) -> list[dict[str, Any]]:
        """Samples by rule, then by hash."""
        return [
            sample.record
            for rule in sorted(self._samples)
            for sample in sorted(self._samples[rule], reverse=True)
        ]

    def change_samples(self, change: Callable[[str], str]) -> None:
        """Rewrite the texts of the samples."""
        for heap in self._samples.values():
            for record in (sample.record for sample in heap):
                record |= {key: change(record[key]) for key in ("text", "detail") if key in record}

    def merge(self, other: DocumentStats) -> None:
        """Add the counts and samples of another shard."""
        for name in ("read", "extracted", "kept"):
            mine, theirs = getattr(self, name), getattr(other, name)
            mine.documents += theirs.documents
            mine.bytes += theirs.bytes
        for rule, count in other.dropped.items():
            mine = self.dropped.setdefault(rule, RuleCount())
            mine.documents += count.documents
            mine.bytes += count.bytes
        for name, amount in other.counters.items():
            self.count(name, amount)
        for name, bins in other.histograms.items():
            target = self.histograms.setdefault(name, {})
            for label, amount in bins.items():
                target[label] = target.get(label, 0) + amount
        for step, seconds in other.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self.hits.extend(other.hits)
        for record in other.samples():
            self._sample(record["rule"], record["id"], record)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "read": vars(self.read),
            "extracted": vars(self.extracted),
            "kept": vars(self.kept),
            "dropped": {rule: vars(count) for rule, count in sorted(self.dropped.items())},
            "counters": dict(sorted(self.counters.items())),
            "histograms": {
                name: dict(sorted(bins.items())) for name, bins in sorted(self.histograms.items())
            },
            "seconds": self.seconds,
            "hits": self.hits,
            "samples": self.samples(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], sample_limit: int) -> DocumentStats:
        """Inverse of :meth:`to_json`."""
        stats = cls(
            sample_limit,
            RuleCount(**values["read"]),
            RuleCount(**values["extracted"]),
            RuleCount(**values["kept"]),
            {rule: RuleCount(**count) for rule, count in values["dropped"].items()},
            dict(values["counters"]),
            values["histograms"],
            dict(values["seconds"]),
            values["hits"],
        )
        for record in values["samples"]:
            stats._sample(record["rule"], record["id"], record)
        return stats

    def writer(self, step: str) -> DropWriter:
        """An ``exclusion_writer`` for a datatrove filter; rules are called ``<step>.<reason>``."""
        return DropWriter(self, step)


class DropWriter:
    """Stands in for datatrove's ``DiskWriter`` where a filter writes what it drops."""

    def __init__(self, stats: DocumentStats, step: str) -> None:
        self.stats = stats
        self.step = step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def observe(self, name: str, value: float, width: float = 0.05, last: float = 0.95) -> None:
        """Add a document to a histogram of the step's own values: :meth:`DocumentStats.observe_value`."""
        self.stats.observe_value(name, value, width, last)

    def write(self, document: Document, rank: int = 0, **_: Any) -> None:
        """Count a dropped document under its ``filter_reason``."""
        reason = document.metadata.pop("filter_reason", None)
        self.stats.drop(f"{self.step}.{reason}" if reason else self.step, document)


StatsBySource = dict[str, tuple[DocumentStats, DocumentStats]]
"""Counts of a source in the first and in the last pass."""
