"""Main-content extraction and text normalisation, as datatrove steps."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.extractors.trafilatura import Trafilatura

from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import ExtractionConfig
from tsugiki.experiment.parent import die_with_parent

_LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029\x0b\x0c]")
# C0/C1 controls without tab and newline, byte order mark, replacement of lone surrogates below.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
# Tried at the beginning of a run of spaces only: from every one of them the time would be the square of the run.
_TRAILING_SPACES = re.compile(r"(?<![ \t\u00a0\u3000])[ \t\u00a0\u3000]+\n")
_BLANK_LINES = re.compile(r"\n{3,}")


class Sandbox(ExtractorSandbox):
    """datatrove's sandbox process, always forked.

    datatrove starts it by the default method. In a worker that is not a fork, so a page that times
    out is followed by an error: the second process is handed the first one, which cannot be
    pickled. A fork also inherits the imported parser and is ready at once.
    """

    _START_SECONDS = 60.0
    process: Any

    def _ensure_process(self, extract_fn: Callable[[str], str]) -> None:
        if self.process is not None and self.process.is_alive():
            return
        self._cleanup_process()
        context = multiprocessing.get_context("fork")
        self.parent_conn, self.child_conn = context.Pipe()
        process = context.Process(
            target=self._forked, args=(self.child_conn, extract_fn, os.getpid()), daemon=True
        )
        process.start()
        self.process = process
        self.all_processes.append(process)
        if not self.parent_conn.poll(self._START_SECONDS):
            self._cleanup_process()
            raise TimeoutError("the extraction process does not start")
        self.parent_conn.recv()

    def _forked(self, connection: Any, extract_fn: Callable[[str], str], parent: int) -> None:
        die_with_parent(parent)
        # datatrove ends this process by SIGTERM; the handler of the caller would answer with a traceback.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._worker(connection, extract_fn)


class ContentExtractor(Trafilatura):
    """datatrove's trafilatura step with counts and samples of what yields no text.

    Pages are extracted in a sandbox process, so that one that loops or crashes the parser costs
    its timeout and nothing else.
    """

    name = "extraction"

    def __init__(self, config: ExtractionConfig, stats: DocumentStats) -> None:
        options: dict[str, Any] = {
            "no_fallback": not config.fallback,
            "include_tables": config.tables,
            "prune_xpath": list(config.remove) or None,
        }
        super().__init__(
            favour_precision=config.precision,
            timeout=config.timeout_seconds,
            deduplicate=False,  # keeps state across pages: results would depend on the sharding
            **options,
        )
        self.counts = stats

    def extract(self, text: str) -> str:
        """Text of a page; empty when there is none or the page cannot be parsed."""
        if not text:  # the sandbox warms up with an empty page
            import trafilatura  # noqa: F401

            return ""
        from lxml.etree import LxmlError  # type: ignore[import-untyped]

        try:
            return super().extract(text) or ""
        except (LxmlError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
            return ""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Replace markup by text; drop pages without text."""
        import trafilatura  # noqa: F401  (imported here so that each sandbox inherits it)

        with Sandbox(timeout=self.timeout, warmup_text="") as sandbox:
            for document in data:
                with self.track_time():
                    try:
                        text = sandbox.process_document(document.text, self.extract)
                    except TimeoutError:
                        self.counts.drop(f"{self.name}.timeout", document)
                        continue
                    except (EOFError, OSError):
                        self.counts.drop(f"{self.name}.crash", document)
                        continue
                if not text.strip():
                    self.counts.drop(f"{self.name}.no_content", document)
                    continue
                document.text = text
                yield document


def normalise(text: str) -> str:
    """Line ends to ``\\n``, controls and lone surrogates out, at most one blank line in a row.

    Line rules take a CRLF document for one of a single line and drop it, so this comes first.
    """
    text = _LINE_ENDS.sub("\n", text)
    text = _CONTROLS.sub("", text)
    text = text.encode("utf-8", errors="ignore").decode("utf-8")
    text = _TRAILING_SPACES.sub("\n", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


class Normaliser(PipelineStep):
    """Applies :func:`normalise`; drops what is empty after it."""

    name = "normalise"
    type = "formatter"

    def __init__(self, stats: DocumentStats) -> None:
        super().__init__()
        self.counts = stats

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Normalise each document and count the text that enters the filters."""
        for document in data:
            with self.track_time():
                document.text = normalise(document.text)
            if not document.text:
                self.counts.drop("read.empty_text", document)
                continue
            self.counts.extracted.documents += 1
            self.counts.extracted.bytes += len(document.text.encode())
            yield document


class Timed:
    """Wraps a step's generator and adds the time spent inside it, upstream excluded, to the counts."""

    def __init__(self, stats: DocumentStats) -> None:
        self.counts = stats
        self._inside: list[str] = ["read"]
        self._since = time.perf_counter()

    def _switch(self, name: str) -> None:
        now = time.perf_counter()
        current = self._inside[-1]
        seconds = self.counts.seconds
        seconds[current] = seconds.get(current, 0.0) + now - self._since
        self._since = now
        self._inside[-1] = name

    def pulled(self, data: Iterator[Document], upstream: str, name: str) -> Iterator[Document]:
        """``data``, with the clock switched to ``upstream`` while it is being produced."""
        while True:
            self._switch(upstream)
            try:
                document = next(data)
            except StopIteration:
                self._switch(name)
                return
            self._switch(name)
            yield document

    def finish(self) -> None:
        """Book the time since the last switch."""
        self._switch(self._inside[-1])
