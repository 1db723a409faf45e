"""``corpus.steps``: datatrove steps of the user's own in the first pass, counted like ours.

A step gets an instance for each shard, so what it remembers does not depend on how shards meet workers. It sees the
documents of the shard in order, ``rank`` being the number of the shard and ``world_size`` that of all shards. Between
it and the others stands :class:`CountedStep`, which knows what went in and what came out.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats, DropWriter
from tsugiki.data.config import CorpusConfig, OnError, StepConfig, StepPoint
from tsugiki.data.filters.base import ordered_filters, rule_of
from tsugiki.data.formatters.extraction import normalise
from tsugiki.experiment.config.registry import load_object
from tsugiki.experiment.errors import ConfigError, DataError

_OURS = ("skipped", "read", "blocked_url", "extraction", "pair", "duplicate", "line_dedup", "contaminated")
_RAW: tuple[StepPoint, ...] = ("read", "urls")


def step_class(settings: StepConfig, where: object) -> type[PipelineStep]:
    """The class of a step.

    Raises:
        ConfigError: it cannot be imported, or is not a datatrove step.
    """
    loaded = load_object(settings.use, where, kind="step of corpus.steps")
    if not (isinstance(loaded, type) and issubclass(loaded, PipelineStep)):
        raise ConfigError(
            "not a datatrove step",
            where=where,
            got=f"{settings.use}: {loaded!r}",
            expected="a subclass of datatrove.pipeline.base.PipelineStep, e.g. of BaseFilter",
        )
    return loaded


def make_step(settings: StepConfig, where: object) -> PipelineStep:
    """An instance of a step with the arguments of ``with``.

    Raises:
        ConfigError: as :func:`step_class`; the constructor refuses the arguments.
    """
    made = step_class(settings, where)
    try:
        return made(**settings.arguments)
    # Anything may come out of a constructor that is not ours.
    except Exception as error:
        raise ConfigError(
            f"the step '{settings.label}' cannot be made",
            where=where,
            got=f"{settings.use} with {settings.arguments or 'no arguments'}: {type(error).__name__}: {error}",
            expected="arguments of its constructor under `with`",
        ) from error


def check_steps(config: CorpusConfig) -> None:
    """Make every step once, before the hours of reading.

    Raises:
        ConfigError: a step that cannot be imported or made, or is called like one of ours.
    """
    taken = {*_OURS, *map(rule_of, ordered_filters())} if config.steps else set()
    for number, settings in enumerate(config.steps):
        where = f"corpus.steps.{number}.use"
        make_step(settings, where)
        if settings.label in taken:
            raise ConfigError(
                "a step is called like one of Tsugiki's",
                where=where,
                got=settings.label,
                fix="give it a `name:`",
            )


def steps_after(
    point: StepPoint, config: CorpusConfig, shard: Shard, shards: int, stats: DocumentStats
) -> list[PipelineStep]:
    """The user's steps at a point of the first pass.

    Args:
        point: where.
        config: the corpus section.
        shard: what is read.
        shards: how many there are.
        stats: counts of the shard.

    Raises:
        ConfigError: a step that cannot be imported or made on this machine.
    """
    return [
        CountedStep(
            make_step(settings, f"corpus.steps.{number}.use, on {socket.gethostname()}"),
            settings,
            stats,
            config.on_error,
            (shard.rank, shards),
        )
        for number, settings in enumerate(config.steps)
        if settings.after == point
    ]


@dataclass(frozen=True)
class _Waiting:
    """A document that a step was given and has not returned; small, for steps that drop nearly all."""

    document: Document
    size_bytes: int
    text_hash: int


class _Inbox:
    """Feeds a step and remembers what it has not returned.

    Attributes:
        last: the document that was given last; None before the first one.
        error: what the steps before this one raised.
        given: how many documents were given.
    """

    def __init__(self, data: Iterator[Document], keep_characters: int) -> None:
        self._data = data
        self._keep = keep_characters
        self._waiting: dict[str, deque[_Waiting]] = {}
        self.last: Document | None = None
        self.error: Exception | None = None
        self.given = 0

    def feed(self) -> Iterator[Document]:
        """The documents that are left."""
        while True:
            try:
                document = next(self._data)
            except StopIteration:
                return
            except Exception as error:
                self.error = error
                raise
            text = document.text
            excerpt = Document(text[: self._keep], document.id, metadata=dict(document.metadata))
            entry = _Waiting(excerpt, len(text.encode(errors="replace")), hash(text))
            self._waiting.setdefault(document.id, deque()).append(entry)
            self.last = excerpt
            self.given += 1
            yield document

    def take(self, identifier: str) -> _Waiting | None:
        """Forget a document; None where the step made it itself."""
        entries = self._waiting.get(identifier)
        if not entries:
            return None
        entry = entries.popleft()
        if not entries:
            del self._waiting[identifier]
        return entry

    def left(self) -> list[_Waiting]:
        """What was never returned."""
        return [entry for entries in self._waiting.values() for entry in entries]


class _ReasonWriter(DropWriter):
    """The ``exclusion_writer`` of a filter: counts what it drops at once, with its reason."""

    inbox: _Inbox

    def write(self, document: Document, rank: int = 0, **_: Any) -> None:
        """Count a dropped document under its ``filter_reason``."""
        self.inbox.take(document.id)
        super().write(document)


class CountedStep(PipelineStep):
    """Runs a user's step and counts what it drops, changes and adds, under its name.

    ``<name>`` counts dropped documents, ``<name>.<reason>`` those of a filter that gives reasons, ``<name>.failed``
    those it failed on, ``<name>.empty_text`` those it left without text; the counters ``<name> changed`` and
    ``<name> added`` what it changed and what it made.

    Args:
        step: the step.
        settings: its section.
        stats: counts of the shard.
        on_error: whether a document it fails on is dropped, or stops the run.
        share: number of the shard, and of all shards.
    """

    type = "own"

    def __init__(
        self,
        step: PipelineStep,
        settings: StepConfig,
        stats: DocumentStats,
        on_error: OnError,
        share: tuple[int, int],
    ) -> None:
        super().__init__()
        self.name = settings.label
        self.step = step
        self.is_raw = settings.after in _RAW
        self.counts = stats
        self.on_error = on_error
        self.share = share

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """What the step makes of the documents.

        Raises:
            DataError: the step failed, with ``on_error: fail`` or before its first document.
        """
        inbox = _Inbox(data, self.counts.excerpt_characters)
        if isinstance(self.step, BaseFilter):
            writer = _ReasonWriter(self.counts, self.name)
            writer.inbox = inbox
            self.step.exclusion_writer = writer
        finished = False
        while not finished:
            given = inbox.given
            try:
                for document in self.step.run(inbox.feed(), *self.share):
                    if (checked := self._checked(document, inbox)) is not None:
                        yield checked
                finished = True
            # Anything may come out of a step that is not ours.
            except Exception as error:
                if inbox.error is None:
                    self._failed(error, inbox, inbox.given > given)
            if inbox.error is not None:  # of the steps before, whatever this one made of it
                raise inbox.error
        for entry in inbox.left():
            self.counts.drop(self.name, entry.document, size_bytes=entry.size_bytes)

    def _checked(self, document: Any, inbox: _Inbox) -> Document | None:
        """A document that the step gave, counted; None where it has no text left.

        Raises:
            TypeError: not a document, or nothing that fits into a shard.
        """
        if not isinstance(document, Document) or not isinstance(document.text, str):
            raise TypeError(f"it gave a {type(document).__name__} where a Document with a text is expected")
        orjson.dumps([document.id, document.metadata])
        before = inbox.take(document.id)
        if before is None:
            self.counts.count(f"{self.name} added")
        elif before.text_hash != hash(document.text):
            self.counts.count(f"{self.name} changed")
        else:
            return document
        if not self.is_raw:
            document.text = normalise(document.text)
        if document.text or "messages" in document.metadata or "pair" in document.metadata:
            return document
        self.counts.drop(f"{self.name}.empty_text", document)
        return None

    def _failed(self, error: Exception, inbox: _Inbox, has_read: bool) -> None:
        """Drop the document that the step failed on.

        Raises:
            DataError: with ``on_error: fail``, or where it failed without a document in its hands.
        """
        detail = f"{type(error).__name__}: {error}"
        entry = inbox.take(inbox.last.id) if has_read and inbox.last is not None else None
        # A package that is missing fails every document; without an entry there is nothing to drop instead.
        if self.on_error == "fail" or entry is None or isinstance(error, (ImportError, MemoryError)):
            raise DataError(
                f"the step '{self.name}' of corpus.steps failed",
                where=f"document {inbox.last.id}" if inbox.last is not None else "before its first document",
                got=detail,
                fix="correct the step; corpus.on_error=skip drops the documents it fails on and goes on",
            ) from error
        self.counts.drop(f"{self.name}.failed", entry.document, detail, size_bytes=entry.size_bytes)
