"""Parquet files of a few kilobytes that ask for gigabytes: real ones whose page was exchanged for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tsugiki.data.readers.parquet_pages import Encoding

_RLE = 3
_RLE_BLOCK = 1 << 17


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def zigzag(number: int) -> bytes:
    """A signed number of Thrift's compact protocol."""
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def page_header(unpacked: int, packed: int, values: int, encoding: Encoding = Encoding.PLAIN) -> bytes:
    """The header of a data page (version 1), in Thrift's compact protocol."""
    field = b"\x15"  # the next field, a 32-bit number
    numbers = (values, encoding, _RLE, _RLE)
    inner = b"".join(field + zigzag(number) for number in numbers) + b"\0"
    return field + zigzag(0) + field + zigzag(unpacked) + field + zigzag(packed) + b"\x2c" + inner + b"\0"


def zstd_frame(head: bytes, swollen: int, tail: bytes = b"") -> bytes:
    """A zstd frame of ``head``, ``swollen`` times the letter a, and ``tail``: 4 bytes for each 128 kB."""
    size = len(head) + swollen + len(tail)
    frame = b"\x28\xb5\x2f\xfd" + b"\xe0" + size.to_bytes(8, "little")

    def block(kind: int, length: int, content: bytes) -> bytes:
        return (kind << 1 | length << 3).to_bytes(3, "little") + content

    frame += block(0, len(head), head)
    while swollen:
        length = min(_RLE_BLOCK, swollen)
        frame += block(1, length, b"a")
        swollen -= length
    return frame + (1 | len(tail) << 3).to_bytes(3, "little") + tail


def exchange_page(path: Path, column: int, header: bytes, body: bytes) -> None:
    """Put another page in place of the only one of a column; the footer stays as it was.

    The place is filled up behind it: a reader stops when it has the values that the footer states.
    """
    chunk = pq.read_metadata(path).row_group(0).column(column)
    assert not chunk.has_dictionary_page
    page = header + body
    assert len(page) <= chunk.total_compressed_size, (len(page), chunk.total_compressed_size)
    with path.open("r+b") as stream:
        stream.seek(chunk.data_page_offset)
        stream.write(page.ljust(chunk.total_compressed_size, b"\0"))


def filler(size: int) -> str:
    """Letters that zstd does not make much smaller."""
    import random

    return "".join(
        random.Random(0).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", k=size)
    )


def levels(value: int, count: int) -> bytes:
    """One definition or repetition level (at most 1 bit wide) for all values, behind its length."""
    run = varint(count << 1) + bytes([value])
    return len(run).to_bytes(4, "little") + run


def write_texts(path: Path, texts: list[str], **options: Any) -> None:
    """A file with one text column and one page."""
    settings = {"compression": "zstd", "use_dictionary": False, "data_page_size": 1 << 30} | options
    pq.write_table(pa.table({"text": texts}), path, **settings)


def swollen_page(path: Path) -> None:
    """The footer says 60 kB; its page unpacks to one text of 1.5 GB."""
    write_texts(path, [filler(70_000)])
    size = 1_500_000_000
    head = levels(1, 1) + size.to_bytes(4, "little")
    body = zstd_frame(head, size)
    exchange_page(path, 0, page_header(size + len(head), len(body), 1), body)


def prefixes_in_a_page(path: Path) -> None:
    """Rows that repeat the megabyte of the first one; the footer says that none does."""
    rows, size = 2000, 1_000_000
    text = filler(40 * rows)
    write_texts(path, [text[40 * row : 40 * row + 40] for row in range(rows)])
    head = levels(1, rows)
    # The first row has a suffix of a megabyte and no prefix, all others the other way round.
    prefixes = varint(128) + varint(4) + varint(rows) + zigzag(0) + first_block(size) + later_blocks(rows)
    lengths = varint(128) + varint(4) + varint(rows) + zigzag(size) + first_block(-size) + later_blocks(rows)
    body = zstd_frame(head + prefixes + lengths, size)
    unpacked = len(head + prefixes + lengths) + size
    exchange_page(path, 0, page_header(unpacked, len(body), rows, Encoding.DELTA_BYTE_ARRAY), body)


def first_block(delta: int) -> bytes:
    """128 differences of DELTA_BINARY_PACKED: the first one as given, then none."""
    # Smallest difference, bits of each of four parts, and the parts' differences from the smallest.
    low = min(delta, 0)
    width = abs(delta).bit_length()
    values = [delta - low, *[-low] * 31]
    packed = sum(value << (place * width) for place, value in enumerate(values)).to_bytes(4 * width, "little")
    others = sum(-low << (place * width) for place in range(32)).to_bytes(4 * width, "little")
    widths = [width] * 4 if low else [width, 0, 0, 0]
    return zigzag(low) + bytes(widths) + packed + (others * 3 if low else b"")


def later_blocks(count: int) -> bytes:
    """Blocks of differences of nought, behind the first one."""
    return (zigzag(0) + bytes(4)) * (-(-(count - 1) // 128) - 1)


def counted_lengths(path: Path) -> None:
    """One row; its page says that a thousand million lengths follow."""
    write_texts(path, [filler(70_000)])
    content = (
        levels(1, 1) + varint(1 << 30) + varint(4) + varint(1_000_000_000) + zigzag(0) + zigzag(0) + bytes(4)
    )
    body = zstd_frame(content, 0)
    exchange_page(path, 0, page_header(len(content), len(body), 1, Encoding.DELTA_LENGTH_BYTE_ARRAY), body)


def shared_message(path: Path) -> None:
    """Nothing lies: a conversation of 20,000 messages that share a megabyte."""
    count = 20_000

    def repeated(value: str) -> Any:
        return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))

    messages = pa.StructArray.from_arrays([repeated("user"), repeated("a" * 1_000_000)], ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), messages)
    pq.write_table(pa.table({"messages": column}), path, compression="zstd")


def missing_rows(path: Path) -> None:
    """Nothing lies: five million rows without a text."""
    pq.write_table(pa.table({"text": pa.nulls(5_000_000, pa.string())}), path, row_group_size=5_000_000)


def wide_fixed(path: Path) -> None:
    """Nothing lies: a thousand values of 100 kB, stored once."""
    kind = pa.binary(100_000)
    value = pa.array([b"a" * 100_000], kind)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), value)
    pq.write_table(pa.table({"text": column.cast(kind)}), path, compression="zstd")


BOMBS = [swollen_page, counted_lengths, shared_message, wide_fixed, missing_rows]
