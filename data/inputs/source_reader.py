"""Reads the files of a shard into datatrove documents; bad input is counted or stops the run."""

from __future__ import annotations

from collections.abc import Iterator

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.shard import InputFile, Shard, name_hash
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import OnError, SourceConfig
from tsugiki.data.readers.base import BadRecord, reader_of
from tsugiki.experiment.artefacts.shards import TruncatedInput
from tsugiki.experiment.errors import DataError


class SourceReader(PipelineStep):
    """Yields the documents of some files of a source.

    Args:
        source: the source.
        shard: what to read.
        stats: where counts and bad input go.
        on_error: ``skip`` counts bad input, ``fail`` raises.

    Raises:
        DataError: bad input with ``on_error: fail``; the message names file, line and reason.
    """

    name = "read"
    type = "reader"

    def __init__(self, source: SourceConfig, shard: Shard, stats: DocumentStats, on_error: OnError) -> None:
        super().__init__()
        self.source = source
        self.reader = reader_of(source)
        self.shard = shard
        self.counts = stats
        self.on_error = on_error

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of all files; ``data`` (documents of an earlier step) passes through first."""
        if data:
            yield from data
        for file in self.shard.files:
            for record in self._checked(file):
                if isinstance(record, BadRecord):
                    self._refuse(record)
                    continue
                self.counts.read.documents += 1
                self.counts.read.bytes += record.metadata.pop("input_bytes")
                yield record

    def _checked(self, file: InputFile) -> Iterator[Document | BadRecord]:
        """Records of a file; the end of a damaged file becomes a bad record."""
        # Every streamed part meets what is wrong with the file as a whole: the first one reports it.
        reports = file.part is None or file.part.number == 0 or file.part.end is not None
        try:
            empty = reports
            limit = self.shard.hash_limit
            for number, record in self.reader.read(self.source, file):
                empty = False
                if limit is None or name_hash(file.name, str(number)) <= limit:
                    yield record
            if empty:
                yield BadRecord("read.empty_file", file.name, "no records in the file")
        except TruncatedInput as error:
            if reports or self.reader.parts_report_damage:
                yield BadRecord("read.truncated", file.name, str(error))
        except OSError as error:
            if reports:
                yield BadRecord("read.unreadable", file.name, f"{error.strerror or error}")

    def _refuse(self, record: BadRecord) -> None:
        if record.is_bad and self.on_error == "fail":
            raise DataError(
                f"bad input in source '{self.source.name}': {record.rule.removeprefix('read.')}",
                where=record.where,
                got=record.detail,
                fix="correct the file, or set corpus.on_error=skip to count and skip such records",
            )
        self.counts.bad_input(record.rule, record.where, record.detail, record.excerpt, record.size_bytes)
