"""Which held-out documents are measured: the same for every model, whatever its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
from tsugiki.experiment.errors import ConfigError, DataError


@dataclass(frozen=True)
class Document:
    """A held-out document, whole or cut.

    Attributes:
        identifier: the document's id in the corpus.
        text: the text measured.
        bytes: length of the text in UTF-8.
    """

    identifier: str
    text: str

    @property
    def bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text.encode())


def measured_languages(index: CorpusIndex, wanted: Sequence[str] | None) -> list[str]:
    """Languages that have held-out documents, in the order of the corpus.

    Raises:
        ConfigError: a language was asked for that has none.
        DataError: no language has any.
    """
    available = [
        language
        for language in index.languages
        if any(source.heldout_documents for source in _sources(index, language))
    ]
    if not available:
        raise DataError(
            "nothing to evaluate on",
            where="corpus/index.json",
            got="no held-out documents in any language",
            fix="raise corpus.heldout.fraction, or give the corpus more text",
        )
    if wanted is None:
        return available
    for language in wanted:
        if language not in available:
            raise ConfigError(
                "no held-out documents in a language to evaluate",
                where="evaluate.languages",
                got=language,
                expected=f"one of {', '.join(available)}",
                fix="add a source of that language or raise corpus.heldout.fraction",
            )
    return list(wanted)


def _sources(index: CorpusIndex, language: str) -> list[CorpusSource]:
    """Plain text where there is any; translation pairs only for a language that has nothing else."""
    of_language = [source for source in index.sources if source.language == language]
    plain = [source for source in of_language if source.kind == "text"]
    return plain or [source for source in of_language if source.kind == "parallel"]


def heldout_documents(
    index: CorpusIndex,
    corpus_dir: Path,
    language: str,
    *,
    maximum_bytes: int | None = None,
    maximum_documents: int | None = None,
) -> list[Document]:
    """Held-out documents of a language, one from each source in turn, up to a limit.

    The last document is cut at a character when it would exceed ``maximum_bytes``.
    """
    streams: list[Iterator[dict[str, Any]]] = [
        index.documents(corpus_dir, "heldout", source=source.name) for source in _sources(index, language)
    ]
    chosen: list[Document] = []
    total = 0
    while streams:
        for stream in list(streams):
            record = next(stream, None)
            if record is None:
                streams.remove(stream)
                continue
            text: str = record["text"]
            if maximum_bytes is not None:
                text = text.encode()[: maximum_bytes - total].decode("utf-8", "ignore")
            if text.strip():
                document = Document(str(record["id"]), text)
                chosen.append(document)
                total += document.bytes
            if (maximum_bytes is not None and total >= maximum_bytes - 3) or (
                maximum_documents is not None and len(chosen) >= maximum_documents
            ):
                return chosen
    return chosen
