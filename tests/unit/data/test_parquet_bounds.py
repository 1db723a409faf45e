"""Parquet files that ask for more than they are: bounded memory and time, whatever footer, pages and values say."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import bounded
from hostile_parquet import (
    BOMBS,
    page_header,
    prefixes_in_a_page,
    write_texts,
)

from tsugiki.data.config import SourceConfig
from tsugiki.data.inputs.planning import find_files
from tsugiki.data.readers.base import BadRecord
from tsugiki.data.readers.parquet import read_parquet
from tsugiki.experiment.artefacts.shards import TruncatedInput


def records(path: Path, **options: Any) -> Iterator[Any]:
    settings = SourceConfig.model_validate(
        {"name": "s", "language": "ja", "format": "parquet", "path": str(path)} | options
    )
    for _, record in read_parquet(settings, find_files(settings)[0]):
        yield record


@contextmanager
def address_space(extra_bytes: int) -> Iterator[None]:
    """Within `bounded`, which puts its own limit back."""
    with bounded():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra_bytes, hard))
        yield


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_row_group_that_asks_for_gigabytes_is_left_out(
    tmp_path: Path, bomb: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.parquet"
    bomb(path)
    assert path.stat().st_size < 100_000
    options = {"kind": "instruction"} if bomb.__name__ == "shared_message" else {}
    with address_space(6 << 30):  # more than the least of them asks for: it is the reader that has to end it
        [record] = islice(records(path, **options), 2)
    assert isinstance(record, BadRecord) and record.rule == "read.oversized", record
    assert record.where.startswith("a.parquet, row 1"), record.where


def test_rows_that_repeat_the_one_before_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    prefixes_in_a_page(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    with address_space(3 << 30):
        for record in islice(records(tmp_path), 40):
            assert record.text == "a" * 1_000_000
            assert pa.total_allocated_bytes() - before < 50_000_000  # 1 GB for as many rows as are usual


def test_every_way_of_writing_texts_is_read(tmp_path: Path) -> None:
    texts = [f"{'the same beginning ' * 5}{row}" for row in range(5000)]
    ways: list[dict[str, Any]] = [
        {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
        {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
        {"use_dictionary": True, "dictionary_pagesize_limit": 1000},  # then plain
        {"use_dictionary": False, "compression": "none"},
        {"data_page_size": 1000, "write_page_checksum": True, "write_statistics": True},
    ]
    for number, way in enumerate(ways):
        for version in ("1.0", "2.0"):
            path = tmp_path / f"{number}-{version}.parquet"
            pq.write_table(
                pa.table({"text": texts}), path, row_group_size=3000, data_page_version=version, **way
            )
            assert [record.text for record in records(path)] == texts, (way, version)


def test_what_comes_after_an_oversized_row_group_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_texts(path, ["b" * 500_000, "kept"], row_group_size=1)
    size = 500_000_000
    chunk = pq.read_metadata(path).row_group(0).column(0)
    with path.open("r+b") as stream:
        stream.seek(chunk.data_page_offset)
        stream.write(page_header(size, 10, 1))
    oversized, kept = records(path)
    assert oversized.where == "a.parquet, row 1 to 1" and "500,000,000" in oversized.detail
    assert (kept.text, kept.id) == ("kept", "s/a.parquet#2")


@pytest.mark.parametrize("damage", ["no header", "beyond the file", "endless header"])
def test_pages_that_are_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    write_texts(path, ["good", "b" * 1000], row_group_size=1)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    with path.open("r+b") as stream:
        stream.seek(chunk.data_page_offset)
        stream.write(
            {"no header": bytes(4), "beyond the file": b"\xff" * 20, "endless header": b"\x1c" * 30}[damage]
        )
    found = records(path)
    assert next(found).text == "good"
    with pytest.raises(TruncatedInput, match="page of column text at byte"):
        next(found)


def test_a_page_that_row_groups_share(tmp_path: Path) -> None:
    """A footer of a few bytes a group can have the same page read any number of times."""
    path = tmp_path / "a.parquet"
    write_texts(path, ["b" * 3000] * 50, row_group_size=1, compression="none")
    content = path.read_bytes()
    metadata = pq.read_metadata(path)
    first = metadata.row_group(0).column(0)
    end = first.data_page_offset + first.total_compressed_size
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(content[:end] + content[-footer:])
    with pytest.raises(TruncatedInput, match="bytes of pages in a file of"):
        list(records(path))
