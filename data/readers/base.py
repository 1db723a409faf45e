"""What a reader is, and what all of them give: documents, and bad input with a name.

Every problem has a name (``read.truncated``, ``read.invalid_json``, …) under which the report counts
and samples it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from tsugiki.data.common.charset import encodable
from tsugiki.data.common.shard import InputFile, Part
from tsugiki.data.config import ReaderConfig, SourceConfig, SourceKind
from tsugiki.data.readers import reader_class

if TYPE_CHECKING:
    from datatrove.data import Document


@dataclass(frozen=True)
class BadRecord:
    """Something in the input that is not a document.

    Attributes:
        rule: its name in the report.
        where: file name and line or record.
        detail: the reason, for people.
        excerpt: the beginning of the record.
        size_bytes: length of the record where known.
        is_bad: False for records that are fine but not wanted; these never stop a run.
    """

    rule: str
    where: str
    detail: str
    excerpt: str = ""
    size_bytes: int = 0
    is_bad: bool = True


Records: TypeAlias = "Iterator[tuple[int, Document | BadRecord]]"
"""Number of a record in its file (a line, row or archive record, from 1), and the record."""


class Reader(ABC):
    """A format of input files.

    Attributes:
        options: what ``reader:`` of a source may say; a format with options of its own derives its model from
            :class:`~tsugiki.data.config.ReaderConfig`.
        kinds: kinds of source the format can hold.
        is_markup: the text is a page whose main content has to be extracted.
        parts_report_damage: each part of a divided file meets only its own damage and reports it; False where
            each part unpacks the whole file, so that the first one reports for all.
    """

    options: ClassVar[type[ReaderConfig]] = ReaderConfig
    kinds: ClassVar[frozenset[SourceKind]] = frozenset({"text"})
    is_markup: ClassVar[bool] = False
    parts_report_damage: ClassVar[bool] = False

    @abstractmethod
    def read(self, source: SourceConfig, file: InputFile) -> Records:
        """Records of a file, or of the part of it that ``file.part`` names.

        Raises:
            TruncatedInput: the file is cut short or corrupt.
            OSError: it cannot be opened.
        """

    def has_one_document_per_file(self, source: SourceConfig) -> bool:
        """Whether ``maximum_documents`` chooses among files instead of records."""
        return False

    def record_numbers(self, source: SourceConfig, file: InputFile) -> Iterator[int]:
        """The numbers :meth:`read` would give, found more cheaply where the format allows."""
        for number, _ in self.read(source, file):
            yield number

    def divide(self, source: SourceConfig, file: InputFile, count: int, streamed: int) -> Iterable[InputFile]:
        """A large file in parts that different shards read; the default leaves it whole.

        Args:
            source: the source.
            file: the file.
            count: parts of the wanted size, at least 2.
            streamed: most parts where each of them has to unpack the file from its beginning.
        """
        return [file]


def reader_of(source: SourceConfig) -> Reader:
    """The reader of a source's format."""
    reader: Reader = reader_class(source.format)()
    return reader


def numbered_parts(file: InputFile, count: int) -> Iterator[InputFile]:
    """Parts that know their records by number: see :meth:`Part.has`."""
    if count < 2:
        yield file
        return
    for number in range(count):
        size = (number + 1) * file.size_bytes // count - number * file.size_bytes // count
        yield replace(file, size_bytes=size, part=Part(number, count))


def new_document(
    source: SourceConfig, identifier: str, text: str, input_bytes: int, **metadata: Any
) -> Document:
    """A document with the metadata every document has; its names and addresses fit into UTF-8."""
    from datatrove.data import Document

    known = {"language": source.language, "source": source.name}
    extra = {
        key: encodable(value) if isinstance(value, str) else value
        for key, value in metadata.items()
        if value is not None
    }
    metadata = known | extra | {"input_bytes": input_bytes}
    return Document(text=text, id=encodable(identifier), metadata=metadata)


def lookup(record: dict[str, Any], dotted: str) -> Any:
    """Value of a field; a dotted path goes into nested objects unless the name itself is a field."""
    if dotted in record:
        return record[dotted]
    value: Any = record
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
