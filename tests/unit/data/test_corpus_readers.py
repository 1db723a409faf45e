"""Readers: formats, encodings, and everything that can be wrong with an input file."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tsugiki.data.common.charset import UndecodableInput, decode_page
from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import SourceConfig
from tsugiki.data.inputs.planning import divided, find_files
from tsugiki.data.inputs.source_reader import SourceReader
from tsugiki.experiment.errors import DataError

# warcio leaves its own temporary files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")

SAMPLES = {
    "shift_jis": ("ja", "日本語の文章です。漢字とかなを含むページの本文がここにあります。"),
    "euc_jp": ("ja", "日本語の文章です。漢字とかなを含むページの本文がここにあります。"),
    "iso2022_jp": ("ja", "日本語の文章です。漢字とかなを含むページの本文がここにあります。"),
    "gbk": ("zh", "这是一个中文网页，里面有很多汉字，用来测试编码的检测是否正确。"),
    "big5": ("zh", "這是一個中文網頁，裡面有很多漢字，用來測試編碼的檢測是否正確。"),
    "tis-620": ("th", "นี่คือหน้าเว็บภาษาไทยที่ใช้ทดสอบการตรวจหารหัสอักขระของหน้าเว็บ"),
    "utf-8": ("th", "นี่คือหน้าเว็บภาษาไทยที่ใช้ทดสอบการตรวจหารหัสอักขระของหน้าเว็บ"),
}


def page(body: str, charset: str | None = None) -> str:
    meta = f'<meta charset="{charset}">' if charset else ""
    return f"<!doctype html><html><head>{meta}<title>t</title></head><body><p>{body}</p></body></html>"


def read(path: Path, on_error: str = "skip", **source: Any) -> tuple[list[Any], DocumentStats]:
    values = {"name": "s", "language": "ja", "format": "jsonl", "path": str(path)} | source
    settings = SourceConfig.model_validate(values)
    stats = DocumentStats()
    shard = Shard(0, "s", 0, tuple(find_files(settings)))
    reader = SourceReader(settings, shard, stats, on_error)  # type: ignore[arg-type]
    return list(reader.run(None)), stats


def dropped(stats: DocumentStats) -> dict[str, int]:
    return {rule: count.documents for rule, count in stats.dropped.items()}


# ISO-2022-JP is ASCII bytes, so it is valid UTF-8 unless something declares it.
DECLARED = [
    (encoding, declared)
    for encoding in sorted(SAMPLES)
    for declared in ("page", "header", "nowhere")
    if (encoding, declared) != ("iso2022_jp", "nowhere")
]


@pytest.mark.parametrize(("encoding", "declared"), DECLARED)
def test_pages_decode_whatever_their_encoding(encoding: str, declared: str) -> None:
    language, text = SAMPLES[encoding]
    label = {"iso2022_jp": "iso-2022-jp"}.get(encoding, encoding)
    data = page(text * 3, label if declared == "page" else None).encode(encoding)
    header = f"text/html; charset={label}" if declared == "header" else "text/html"
    assert text in decode_page(data, content_type=header, language=language)


def test_wrong_declaration_loses_against_utf8() -> None:
    data = page("日本語の文章です。", "shift_jis").encode("utf-8")
    assert "日本語の文章です。" in decode_page(data, language="ja")


def test_utf8_cut_in_a_character_survives_and_binary_does_not() -> None:
    data = ("日本語" * 200).encode()[:-1]
    assert decode_page(data, language="ja").startswith("日本語日本語")
    with pytest.raises(UndecodableInput):
        decode_page(bytes(range(128, 256)) * 50, language="en")


@pytest.mark.parametrize("encoding", sorted(SAMPLES))
def test_warc_records_in_each_encoding(tmp_path: Path, encoding: str) -> None:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    language, text = SAMPLES[encoding]
    label = "iso-2022-jp" if encoding == "iso2022_jp" else encoding
    path = tmp_path / "crawl.warc.gz"

    def add(writer: Any, url: str, body: bytes, kind: str, status: str = "200 OK") -> None:
        headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
        record = writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers)
        writer.write_record(record)

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record("x", {"software": "test"}))
        add(writer, "http://a.org/1", page(text * 3).encode(encoding), f"text/html; charset={label}")
        add(writer, "http://a.org/2", b"\x89PNG", "image/png")
        add(writer, "http://a.org/3", page("gone").encode(), "text/html", "404 Not Found")
    documents, stats = read(path, "fail", format="warc", language=language)
    assert [document.metadata["url"] for document in documents] == ["http://a.org/1"]
    assert text in documents[0].text
    assert dropped(stats) == {"skipped.not_html": 1, "skipped.http_status": 1}


def make_warc(path: Path, records: int, compress: bool) -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compress)
        for number in range(records):
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            body = page(f"page {number} " + "word " * 200).encode()
            writer.write_record(
                writer.create_warc_record(
                    f"http://a.org/{number}", "response", payload=io.BytesIO(body), http_headers=headers
                )
            )
    return path.read_bytes()


@pytest.mark.parametrize("compress", [True, False])
def test_truncated_warc_is_counted_and_keeps_what_came_before(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / ("a.warc.gz" if compress else "a.warc")
    data = make_warc(path, 4, compress)
    path.write_bytes(data[: len(data) - len(data) // 8])
    documents, stats = read(path, format="warc", language="en")
    assert len(documents) == 3
    assert dropped(stats) == {"read.truncated": 1}
    with pytest.raises(DataError) as caught:
        read(path, "fail", format="warc", language="en")
    assert "truncated" in str(caught.value) and path.name in str(caught.value)


def test_wet_records(tmp_path: Path) -> None:
    from warcio.warcwriter import WARCWriter

    path = tmp_path / "a.warc.wet.gz"
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for text in ("本文です。".encode(), b"\xff\xfe\x00bad"):
            record = writer.create_warc_record(
                "http://a.org/", "conversion", payload=io.BytesIO(text), warc_content_type="text/plain"
            )
            writer.write_record(record)
    documents, stats = read(path, format="wet")
    assert [document.text for document in documents] == ["本文です。"]
    assert dropped(stats) == {"read.undecodable": 1}


LINES = [
    b'{"id": "good", "text": "one"}',
    b'{"id": "no text", "body": "x"}',
    b'{"id": "number", "text": 5}',
    b'["not", "an object"]',
    b'{"id": "cut", "text": "abc',
    b'{"id": "bytes", "text": "\xff\xfe"}',
    b"",
    b'{"id": 7, "text": "two", "url": "http://a.org"}',
]


def test_bad_json_lines_are_counted_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n".join(LINES))
    documents, stats = read(path)
    assert [(document.id, document.text) for document in documents] == [("s/good", "one"), ("s/7", "two")]
    assert documents[1].metadata["url"] == "http://a.org"
    assert dropped(stats) == {
        "read.missing_field": 1,
        "read.wrong_type": 2,
        "read.invalid_json": 1,
        "read.undecodable": 1,
    }
    sample = next(item for item in stats.samples() if item["rule"] == "read.missing_field")
    assert sample["id"] == "a.jsonl, line 2"
    assert sample["detail"] == "no field 'text'; the record has: id, body"


@pytest.mark.parametrize(("line", "reason"), [(2, "no field 'text'"), (3, "is a int"), (5, "Unterminated")])
def test_on_error_fail_names_file_line_and_reason(tmp_path: Path, line: int, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([LINES[0]] * (line - 1) + [LINES[line - 1]]))
    with pytest.raises(DataError) as caught:
        read(path, "fail")
    assert f"a.jsonl, line {line}" in str(caught.value)
    assert reason in str(caught.value)
    assert "on_error=skip" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["gz", "zst", "bz2", "xz"])
def test_compressed_files_whole_truncated_and_corrupt(tmp_path: Path, ending: str) -> None:
    import bz2
    import lzma

    pack = {
        "gz": gzip.compress,
        "zst": zstandard.ZstdCompressor().compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }[ending]
    # Incompressible text, so that half of the file is half of the lines.
    rng = random.Random(1)
    lines = [json.dumps({"text": rng.randbytes(500).hex()}).encode() for _ in range(2000)]
    path = tmp_path / f"a.jsonl.{ending}"
    whole = pack(b"\n".join(lines))
    path.write_bytes(whole)
    documents, stats = read(path)
    assert len(documents) == 2000 and not stats.dropped
    path.write_bytes(whole[: len(whole) // 2])
    documents, stats = read(path)
    assert len(documents) < 2000
    assert dropped(stats).pop("read.truncated") == 1
    path.write_bytes(b"garbage" * 10)
    documents, stats = read(path)
    assert not documents and dropped(stats) == {"read.truncated": 1}


def test_concatenated_zstd_frames_are_read_to_the_end(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor().compress(b'{"text": "a"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(frame * 3)
    documents, stats = read(tmp_path / "a.jsonl.zst")
    assert len(documents) == 3 and not stats.dropped


def test_oversized_line_and_empty_file(tmp_path: Path) -> None:
    long = json.dumps({"text": "x" * 5_000}).encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n')
    (tmp_path / "b.jsonl").write_bytes(b"")
    reader = {"maximum_document_bytes": 1_000}
    documents, stats = read(tmp_path / "*.jsonl", reader=reader)
    assert [document.text for document in documents] == ["a", "b"]
    assert dropped(stats) == {"read.oversized": 1, "read.empty_file": 1}


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    rows = {"id": ["x", "y"], "content": ["一", None], "other": [1, 2]}
    pq.write_table(pa.table(rows), path)
    documents, stats = read(path, format="parquet", reader={"text_key": "content"})
    assert [(document.id, document.text) for document in documents] == [("s/x", "一")]
    assert dropped(stats) == {"read.missing_field": 1}
    path.write_bytes(path.read_bytes()[:-20])
    documents, stats = read(path, format="parquet", reader={"text_key": "content"})
    assert not documents and dropped(stats) == {"read.truncated": 1}


@pytest.mark.parametrize(
    ("by", "expected"),
    [("file", ["a\nb\n\nc\n"]), ("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c"])],
)
def test_plain_text(tmp_path: Path, by: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n\nc\n")
    documents, _ = read(tmp_path / "a.txt", format="text", reader={"documents": by})
    assert [document.text for document in documents] == expected


def test_conversations_are_checked(tmp_path: Path) -> None:
    good = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    bad = [[], "text", [{"role": "robot", "content": "x"}], [{"role": "user", "content": "no answer"}]]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": item}) for item in [good, *bad]))
    documents, stats = read(tmp_path / "a.jsonl", kind="instruction")
    assert [document.metadata["messages"] for document in documents] == [good]
    assert dropped(stats) == {"read.wrong_type": 4}


def test_file_names_are_relative_to_the_fixed_part_of_the_pattern(tmp_path: Path) -> None:
    for name in ("x/one.txt", "x/y/two.txt", "x/skip.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("t")
    documents, _ = read(tmp_path / "x/**/*.txt", format="text")
    assert [document.id for document in documents] == ["s/one.txt", "s/y/two.txt"]


def test_pages_that_hang_or_crash_the_parser_cost_only_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import time

    from datatrove.data import Document

    from tsugiki.data.config import ExtractionConfig
    from tsugiki.data.formatters.extraction import ContentExtractor

    def extract(self: ContentExtractor, text: str) -> str:
        if "hang" in text:
            time.sleep(60)
        if "crash" in text:
            os._exit(9)
        return text.upper()

    monkeypatch.setattr(ContentExtractor, "extract", extract)
    stats = DocumentStats()
    step = ContentExtractor(ExtractionConfig(timeout_seconds=0.5), stats)
    pages = [Document(text, text) for text in ("one", "hang", "two", "crash", "crash", "three", "")]
    assert [document.text for document in step.run(iter(pages))] == ["ONE", "TWO", "THREE"]  # type: ignore[arg-type]
    assert dropped(stats) == {"extraction.timeout": 1, "extraction.crash": 2, "extraction.no_content": 1}


def parts_of(path: Path, maximum_bytes: int, **source: Any) -> list[tuple[list[Any], DocumentStats]]:
    """What each part of a file gives when it is divided."""
    settings = SourceConfig.model_validate({"name": "s", "language": "en", "path": str(path)} | source)
    found = []
    for file in divided(settings, find_files(settings), maximum_bytes):
        stats = DocumentStats()
        reader = SourceReader(settings, Shard(0, "s", 0, (file,)), stats, "skip")
        found.append((list(reader.run(None)), stats))
    return found


def write_large(path: Path, kind: str) -> dict[str, Any]:
    """A file of 300 records, some of them bad; its reader options."""
    lines = [
        json.dumps({"text": f"record {number} " + "x" * (number % 97)}).encode() for number in range(300)
    ]
    lines[7], lines[150], lines[299] = b"", b"{broken", b'{"id": "last", "text": 5}'
    packed = {"jsonl.gz": gzip.compress, "jsonl.zst": zstandard.ZstdCompressor().compress, "jsonl": bytes}
    if kind in packed:
        path.write_bytes(packed[kind](b"\n".join(lines)))
        return {"format": "jsonl"}
    if kind == "txt":
        path.write_bytes(b"\n".join(lines).replace(b"record 9 ", b"\xff") + b"\n")
        return {"format": "text", "reader": {"documents": "line"}}
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [None if number % 50 == 0 else f"row {number}" for number in range(300)]
        pq.write_table(pa.table({"text": texts}), path, row_group_size=17)
        return {"format": "parquet"}
    make_warc(path, 40, True)
    return {"format": "warc"}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "txt", "parquet", "warc.gz"])
def test_parts_of_a_large_file_add_up_to_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    options = write_large(path, kind)
    [(whole, stats)] = parts_of(path, 1 << 30, **options)
    expected = {document.id: document.text for document in whole}
    assert len(expected) == len(whole)
    factor = 4 if kind == "warc.gz" else 1
    for wanted in (2, 3, 11):
        parts = parts_of(path, max(1, path.stat().st_size // (wanted * factor) + 1), **options)
        assert len(parts) == wanted
        assert max(len(documents) for documents, _ in parts) < 1.7 * len(whole) / wanted + 3
        found = {document.id: document.text for documents, _ in parts for document in documents}
        assert found == expected
        assert sum(len(documents) for documents, _ in parts) == len(whole)
        together = DocumentStats()
        for _, part in parts:
            together.merge(part)
        assert dropped(together) == dropped(stats)
        assert together.samples() == stats.samples()  # the same lines and rows are named


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "warc.gz"])
def test_damage_is_counted_once_by_the_parts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    options = write_large(path, kind)
    path.write_bytes(path.read_bytes()[:-20])
    [(whole, stats)] = parts_of(path, 1 << 30, **options)
    parts = parts_of(path, path.stat().st_size // 12, **options)
    assert len(parts) > 2
    together = DocumentStats()
    for _, part in parts:
        together.merge(part)
    assert dropped(together) == dropped(stats)
    assert dropped(together)["read.truncated"] == 1
    assert sum(len(documents) for documents, _ in parts) == len(whole)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_line_of_fifty_megabytes_takes_little_memory(tmp_path: Path, ending: str) -> None:
    import tracemalloc

    path = tmp_path / f"a.{ending}"
    pack = gzip.GzipFile if ending.endswith("gz") else open
    with pack(path, "wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(60):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    try:
        documents, stats = read(path, reader={"maximum_document_bytes": 2_000_000})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [document.text for document in documents] == ["before", "after"]
    assert dropped(stats) == {"read.oversized": 1}
    assert peak < 12_000_000
    [sample] = stats.samples()
    assert sample["id"] == f"{path.name}, line 2" and "2,000,000 bytes" in sample["detail"]
    with pytest.raises(DataError, match=r"line 2"):
        read(path, "fail", reader={"maximum_document_bytes": 2_000_000})


def damaged(kind: str, folder: Path) -> tuple[Path, dict[str, Any], str, str]:
    """A file with one thing wrong: path, source options, rule in the report, words of the reason."""
    good = b'{"text": "one"}\n'
    noise = json.dumps({"text": random.Random(1).randbytes(5000).hex()}).encode()
    name, data, rule, reason = {
        "truncated gzip": ("a.jsonl.gz", gzip.compress(good + noise)[:-30], "truncated", "gzip"),
        "truncated zstd": ("a.jsonl.zst", zstandard.compress(good + noise)[:-30], "truncated", "zstandard"),
        "truncated warc": ("a.warc.gz", b"", "truncated", "gzip"),
        "invalid utf-8": ("a.jsonl", good + b'{"text": "\xff\xfe"}\n', "undecodable", "utf-8"),
        "invalid utf-8 text": ("a.txt", b"one\n\xff\xfe\n", "undecodable", "utf-8"),
        "binary page": ("a.html", bytes(range(128, 256)) * 50, "undecodable", "invalid"),
        "long line": (
            "a.jsonl",
            good + b'{"text": "' + b"x" * 25_000_000 + b'"}\n',
            "oversized",
            "20,000,000 bytes",
        ),
        "empty file": ("a.jsonl", b"", "empty_file", "no records"),
        "broken json": ("a.jsonl", good + b'{"text": \n', "invalid_json", "Expecting value"),
        "missing field": ("a.jsonl", good + b'{"body": "x"}\n', "missing_field", "the record has: body"),
        "wrong type": ("a.jsonl", good + b'{"text": ["x"]}\n', "wrong_type", "is a list, not a string"),
        "no object": ("a.jsonl", good + b'"text"\n', "wrong_type", "a str, not an object"),
        "no parquet": ("a.parquet", b"PAR1 not really", "truncated", "parquet"),
    }[kind]
    path = folder / name
    path.write_bytes(data)
    ending = name.split(".")[1]
    options: dict[str, Any] = {"format": {"txt": "text"}.get(ending, ending), "language": "en"}
    if ending == "txt":
        options["reader"] = {"documents": "line"}
    if ending == "warc":
        path.write_bytes(make_warc(path, 3, True)[:-40])
    return path, options, f"read.{rule}", reason


@pytest.mark.parametrize(
    "kind",
    [
        "truncated gzip", "truncated zstd", "truncated warc", "invalid utf-8", "invalid utf-8 text", "binary page",
        "long line", "empty file", "broken json", "missing field", "wrong type", "no object", "no parquet",
    ],
)  # fmt: skip
def test_every_kind_of_bad_input_is_counted_or_stops_the_run(tmp_path: Path, kind: str) -> None:
    path, options, rule, reason = damaged(kind, tmp_path)
    documents, stats = read(path, "skip", **options)
    assert dropped(stats) == {rule: 1}
    [sample] = stats.samples()
    assert sample["id"].startswith(path.name) and reason in sample["detail"]
    assert stats.read.documents == len(documents)
    with pytest.raises(DataError) as caught:
        read(path, "fail", **options)
    assert path.name in str(caught.value) and reason in str(caught.value)
    if path.name == "a.jsonl" and kind != "empty file":
        assert [document.text for document in documents] == ["one"]
        assert "a.jsonl, line 2" in str(caught.value)
