"""What the pages of a Parquet file ask for, known before one is unpacked.

Sizes and encodings stand in the footer and again in front of each page. A reader allocates by the latter, so those are
what is judged. The headers are Thrift structures in its compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md) as
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift describes them;
pyarrow reads them too, but does not hand them out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, BinaryIO

from tsugiki.experiment.artefacts.shards import TruncatedInput

_UNPACKED, _PACKED, _VALUES, _ENCODING = 2, 3, 1, 2
_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8
_ENCODING_V2 = 4
_MOST_DEPTH, _MOST_FIELDS = 8, 10_000
"""Of a header. Real ones have three levels and some twenty fields."""
_TRUE, _FALSE, _BYTE, _NUMBERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12


class Encoding(IntEnum):
    """How the texts of a page are stored: only some of the ways that there are."""

    PLAIN = 0
    PLAIN_DICTIONARY = 2
    DELTA_LENGTH_BYTE_ARRAY = 6
    DELTA_BYTE_ARRAY = 7
    """Each repeats a beginning of the one before it."""
    RLE_DICTIONARY = 8


@dataclass(frozen=True)
class ColumnPages:
    """The pages of a column chunk together.

    Attributes:
        packed: their bytes in the file.
        unpacked: the bytes that they unpack to; what unpacks to more is an error of the reader.
        largest: unpacked bytes of the largest one.
        values: values of the data pages, nulls included.
        encodings: :class:`Encoding` of their values.
    """

    packed: int
    unpacked: int
    largest: int
    values: int
    encodings: frozenset[int]


def column_pages(stream: BinaryIO, chunk: Any) -> ColumnPages:
    """Read the page headers of a column chunk.

    Args:
        stream: the file.
        chunk: pyarrow's ``ColumnChunkMetaData``.

    Raises:
        TruncatedInput: the chunk is not within the file, or there is no page header where one has to be.
    """
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    end = start + chunk.total_compressed_size
    size = stream.seek(0, os.SEEK_END)
    if not 0 <= start <= end <= size:
        raise TruncatedInput(
            f"parquet: column {chunk.path_in_schema} from byte {start:,} to {end:,} of {size:,}"
        )
    packed = unpacked = largest = values = 0
    encodings = set()
    place = start
    while place < end and values < chunk.num_values:
        stream.seek(place)
        header = _Thrift(stream, f"parquet: page of column {chunk.path_in_schema} at byte {place:,}")
        fields = header.struct()
        page, page_packed = header.size(fields, _UNPACKED), header.size(fields, _PACKED)
        place = stream.tell() + page_packed
        packed, unpacked, largest = packed + page_packed, unpacked + page, max(largest, page)
        for kind, encoding in ((_DATA, _ENCODING), (_DATA_V2, _ENCODING_V2)):
            if kind in fields:
                values += header.size(fields[kind], _VALUES)
                encodings.add(header.size(fields[kind], encoding))
    return ColumnPages(packed, unpacked, largest, values, frozenset(encodings))


class _Thrift:
    """A structure of the compact protocol; numbers and structures are kept, the rest is passed over.

    Args:
        stream: at its first byte.
        where: for errors.
    """

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream, self._where = stream, where
        self._left = _MOST_FIELDS

    def size(self, fields: Any, key: int) -> int:
        """A number that has to be there and cannot be negative."""
        value = fields.get(key) if isinstance(fields, dict) else None
        if not isinstance(value, int) or value < 0:
            raise TruncatedInput(f"{self._where}: {value} as field {key} of its header")
        return value

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Values by their fields' numbers."""
        if depth > _MOST_DEPTH:
            raise TruncatedInput(f"{self._where}: over {_MOST_DEPTH} levels in its header")
        fields: dict[int, Any] = {}
        key = 0
        while head := self._byte():
            # The high half is the distance from the field before; 0 means that the number follows.
            key = key + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            fields[key] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE, _BYTE):  # in lists booleans take a byte
            return self._byte()
        if kind in _NUMBERS:
            return self._zigzag()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == _DOUBLE:
            self._stream.seek(8, os.SEEK_CUR)
        elif kind == _BINARY:
            self._stream.seek(self._varint(), os.SEEK_CUR)
        elif kind in _LISTS and depth < _MOST_DEPTH:
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            for _ in range(count):
                self._value(head & 15, depth + 1)
        else:
            raise TruncatedInput(f"{self._where}: type {kind} in its header")
        return None

    def _byte(self) -> int:
        self._left -= 1
        data = self._stream.read(1)
        if not data or self._left < 0:
            raise TruncatedInput(f"{self._where}: no header")
        return data[0]

    def _varint(self) -> int:
        number = 0
        for place in range(0, 64, 7):
            byte = self._byte()
            number |= (byte & 0x7F) << place
            if byte < 0x80:
                return number & (1 << 63) - 1
        raise TruncatedInput(f"{self._where}: a number of over 64 bits in its header")

    def _zigzag(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)
