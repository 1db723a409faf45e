"""Input that is wrong in ways a whole run has to survive: names outside UTF-8, damaged archives."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from test_corpus_readers import dropped, parts_of, read
from test_corpus_stage import config, documents, run

from tsugiki.data.common.charset import UndecodableInput, decode_page
from tsugiki.data.common.executor import ProcessExecutor, _run_task
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.common.streams import open_stream
from tsugiki.data.config import CorpusConfig, ReaderConfig, SourceConfig
from tsugiki.data.formatters.extraction import normalise
from tsugiki.data.inputs.planning import find_files
from tsugiki.data.readers.base import BadRecord
from tsugiki.data.readers.parquet import read_parquet
from tsugiki.experiment.artefacts.shards import TruncatedInput, ZstdStream
from tsugiki.experiment.errors import ConfigError, DataError

# warcio leaves its own temporary files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")

GOOD = "The market of the village was open that morning and the people who came to it were many."
SURROGATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "id": ({"id": "x\ud800", "text": GOOD}, {}),
    "url": ({"url": "http://x.org/\ud800", "text": GOOD}, {}),
    "text": ({"text": f"{GOOD} \ud800"}, {}),
    "message": (
        {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": GOOD}]},
        {"kind": "instruction"},
    ),
    "pair": (
        {"id": "\ud800", "source": f"{GOOD}\ud800", "target": "訳です。"},
        {"kind": "parallel", "parallel": {"target_language": "ja"}},
    ),
    "field name": ({"te\ud800xt": 5, "body": "\ud800"}, {}),
}


@pytest.mark.parametrize("where", SURROGATES)
def test_lone_surrogates_never_stop_a_run(tmp_path: Path, where: str) -> None:
    record, options = SURROGATES[where]
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(record) + "\n")
    source = {
        "name": "web",
        "language": "en",
        "format": "jsonl",
        "path": str(path),
        "filter": False,
    } | options
    report = run(
        config(tmp_path, sources=[source], heldout={"fraction": 0}, allow_empty=True), tmp_path / "out"
    )
    kept = documents(tmp_path / "out")
    if where == "field name":
        assert report["sources"][0]["dropped"]["read.missing_field"]["documents"] == 1
        assert "te\ufffdxt" in (tmp_path / "out/report.json").read_text()
        return
    assert len(kept) == (2 if where == "pair" else 1)
    expected = {
        "id": ("id", "web/x\ufffd"),
        "url": ("url", "http://x.org/\ufffd"),
        "text": ("text", GOOD),
        "message": ("messages", [{"role": "user", "content": "\ufffd"}, record.get("messages", [{}])[-1]]),
        "pair": ("id", "web/\ufffd"),
    }[where]
    assert (kept[0]["metadata"] | kept[0])[expected[0]] == expected[1]


def test_file_name_outside_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, lines in (
        (b"x\xff.jsonl", [{"text": GOOD}, {"body": "x"}]),
        (b"y.jsonl", [{"text": "Another page altogether, about a river and its bridge."}]),
    ):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"name": "web", "language": "en", "format": "jsonl", "path": str(folder), "filter": False}
    report = run(config(tmp_path, sources=[source], heldout={"fraction": 0}), tmp_path / "out")
    assert [item["id"] for item in documents(tmp_path / "out")] == ["web/x\\xff.jsonl#1", "web/y.jsonl#1"]
    assert [item["id"] for item in report["sources"][0]["samples"]] == ["x\\xff.jsonl, line 2"]


def test_unexpected_failure_names_a_log_that_exists(tmp_path: Path) -> None:
    from datatrove.pipeline.base import PipelineStep

    class Failing(PipelineStep):
        name, type = "failing", "test"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
            raise TypeError("unforeseen")

    executor = ProcessExecutor([Failing()], 1, 1, tmp_path / "run/.work/logs/filter", "corpus filter")
    with pytest.raises(DataError, match="unforeseen") as caught:
        _run_task(executor, 0)
    log = Path(str(caught.value).split("the traceback is in ")[1].split()[0])
    assert "Traceback" in log.read_text()


def warc(path: Path) -> tuple[bytes, list[int]]:
    """Three pages with a request before each: bytes, and the places where a record begins."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=False)
        for number in range(3):
            url = f"http://a.org/{number}"
            ask = StatusAndHeaders(f"GET /{number} HTTP/1.1", [("Host", "a.org")], is_http_request=True)
            writer.write_record(writer.create_warc_record(url, "request", http_headers=ask))
            answer = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            body = io.BytesIO(f"<html><p>page {number}</p></html>".encode())
            record = writer.create_warc_record(url, "response", payload=body, http_headers=answer)
            writer.write_record(record)
    data = path.read_bytes()
    return data, [match.start() for match in re.finditer(rb"WARC/1\.0\r\n", data)]


@pytest.mark.slow
def test_archive_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    data, starts = warc(path)
    ends = [*starts[1:], len(data)]
    whole = [document.text for document in read(path, format="warc", language="en")[0]]
    assert len(whole) == 3
    for cut in range(1, len(data)):
        path.write_bytes(data[:cut])
        documents, stats = read(path, format="warc", language="en")
        assert [document.text for document in documents] == whole[: len(documents)]
        complete = [end for end in ends if end - 4 <= cut]  # four bytes of line ends follow a record
        assert len(documents) == len(complete) // 2
        if complete and cut <= complete[-1]:  # between records: what is missing cannot be seen
            assert dropped(stats) == ({} if documents else {"read.empty_file": 1})
        else:
            assert dropped(stats) in ({"read.truncated": 1}, {"read.damaged_record": 1}), cut
    path.write_bytes(data[: starts[3] + 20])
    with pytest.raises(DataError, match=r"a\.warc"):
        read(path, "fail", format="warc", language="en")


@pytest.mark.parametrize("change", [-9, -3, 5, 30, 400, 10**6])
def test_wrong_content_length_costs_one_record(tmp_path: Path, change: int) -> None:
    path = tmp_path / "a.warc"
    data, starts = warc(path)
    texts = [document.text for document in read(path, format="warc", language="en")[0]]
    for number, start in enumerate(starts):
        if number % 2 == 0 and change < 0:
            continue  # what a request loses is line ends
        field = re.compile(rb"Content-Length: (\d+)").search(data, start)
        assert field is not None
        wrong = b"Content-Length: %d" % (int(field[1]) + change)
        path.write_bytes(data[: field.start()] + wrong + data[field.end() :])
        documents, stats = read(path, format="warc", language="en")
        if number == len(starts) - 1 and change > 0:
            assert dropped(stats) == ({"read.truncated": 1} if change > 4 else {})
        else:
            assert dropped(stats) == {"read.damaged_record": 1}, (number, change)
        kept = [text for place, text in enumerate(texts) if number != 2 * place + 1]
        assert [document.text for document in documents] == kept
        with pytest.raises(DataError):
            read(path, "fail", format="warc", language="en")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"WARC-Type: response", b"WARC-Type: respomse"),
        (b"WARC-Type: response", b"WARC-Tyqe: response"),
        (b"WARC-Type: request", b"WARC-Type:        "),
        (b"Content-Length: ", b"Content-Lenght: "),
        (b"Content-Length: ", b"Content-Length: x"),
        (b"WARC/1.0", b"WERC/1.0"),
    ],
)
def test_damaged_headers_are_counted(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "a.warc"
    data, starts = warc(path)
    place = data.index(before, starts[2])
    path.write_bytes(data[:place] + after + data[place + len(before) :])
    documents, stats = read(path, format="warc", language="en")
    assert dropped(stats) == {"read.damaged_record": 1}
    assert len(documents) >= 2
    parts = parts_of(path, len(data) // 12, format="warc")
    assert len(parts) > 1
    assert sum(sum(dropped(part).values()) for _, part in parts) == 1
    assert sum(len(found) for found, _ in parts) == len(documents)


def test_pages_packed_in_a_way_nobody_unpacks_are_not_text(tmp_path: Path) -> None:
    import zstandard
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    path = tmp_path / "a.warc"
    page = b"<html><body>" + GOOD.encode() + b"</body></html>"
    bodies = [("zstd", zstandard.compress(page)), ("br", b"\x8b\x05\x80hello"), ("br", page)]
    bodies += [("gzip", gzip.compress(page)), ("gzip", page)]
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=False)
        for packing, body in bodies:
            fields = [("Content-Type", "text/html"), ("Content-Encoding", packing)]
            headers = StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1")
            record = writer.create_warc_record(
                "http://a.org/", "response", payload=io.BytesIO(body), http_headers=headers
            )
            writer.write_record(record)
    documents, stats = read(path, format="warc", language="en")
    assert [document.text for document in documents] == [page.decode()] * 3
    assert dropped(stats) == {"read.undecodable": 2}
    assert {item["detail"] for item in stats.samples()} == {"Content-Encoding zstd", "Content-Encoding br"}


@pytest.mark.parametrize("ending", ["txt", "txt.zst"])
def test_paragraphs_of_a_file_longer_than_a_document(tmp_path: Path, ending: str) -> None:
    import zstandard

    path = tmp_path / f"book.{ending}"
    blocks = [f"Paragraph {number}.\nIts second line, {number}." for number in range(400)]
    parts = [block.encode() for block in blocks]
    parts[7] = b"x" * 3000 + b"\nand more"
    parts[9] = b"line\n" * 500
    parts[11] = b"\xff\xfe no text"
    data = b"\n\n\xe3\x80\x80\n".join(parts)
    path.write_bytes(zstandard.compress(data) if ending.endswith("zst") else data)
    reader = {"documents": "paragraph", "maximum_document_bytes": 2000}
    documents, stats = read(path, format="text", language="en", reader=reader)
    bad = (7, 9, 11)
    assert [document.text for document in documents] == [
        block for number, block in enumerate(blocks) if number not in bad
    ]
    assert [document.id for document in documents[:8]] == [
        f"s/{path.name}#{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8)
    ]
    assert dropped(stats) == {"read.oversized": 2, "read.undecodable": 1}
    before = sum(part.count(b"\n") + 3 for part in parts[:7])
    assert f"{path.name}, line {before + 1}" in {item["id"] for item in stats.samples()}


@pytest.mark.parametrize("encoding", ["cp932", "utf-16"])
def test_paragraphs_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("一つ目の段落です。\n二行目です。\n\n三行目は次の段落です。".encode(encoding))
    for given in (None, encoding):
        reader = {"documents": "paragraph", "encoding": given}
        documents, _ = read(path, "fail", format="text", reader=reader)
        assert [document.text for document in documents] == [
            "一つ目の段落です。\n二行目です。",
            "三行目は次の段落です。",
        ]


def test_zstandard_frame_with_a_long_window(tmp_path: Path) -> None:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # its size is not known
    data = packer.compress(b'{"text": "one"}\n') + packer.flush()
    (tmp_path / "a.jsonl.zst").write_bytes(data * 2)
    documents, stats = read(tmp_path / "a.jsonl.zst")
    assert [document.text for document in documents] == ["one", "one"] and not stats.dropped


def test_address_and_id_inside_other_fields(tmp_path: Path) -> None:
    record = {"text": GOOD, "metadata": {"url": "http://x.org/1", "key": 7}}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    reader = {"url_key": "metadata.url", "id_key": "metadata.key"}
    [document], _ = read(tmp_path / "a.jsonl", reader=reader)
    assert (document.id, document.metadata["url"]) == ("s/7", "http://x.org/1")


def test_parquet_without_the_column_says_what_it_has(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["a"], "number": [1]}), tmp_path / "a.parquet")
    _, stats = read(tmp_path / "a.parquet", format="parquet")
    assert [item["detail"] for item in stats.samples()] == ["no field 'text'; the record has: body, number"]


def test_conversation_of_empty_answers_is_bad_input(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    documents, stats = read(tmp_path / "a.jsonl", kind="instruction")
    assert not documents and dropped(stats) == {"read.wrong_type": 1}


LEGACY = {
    "cp874": ("th", "ประเทศไทยเป็นประเทศที่ตั้งอยู่ในเอเชียตะวันออกเฉียงใต้ "),
    "cp932": ("ja", "これは日本語の文章です。東京都に住んでいる人々の生活について書いてある。"),
    "euc_jp": ("ja", "これは日本語の文章です。東京都に住んでいる人々の生活について書いてある。"),
    "gb18030": ("zh", "中华人民共和国是一个国家，首都是北京。这里有很多人。"),
    "big5": ("zh", "中華民國是一個國家，首都是臺北。這裡有很多人。"),
}


@pytest.mark.parametrize("encoding", LEGACY)
@pytest.mark.parametrize("declared", ["iso-8859-1", "windows-1252", "utf-16", "utf-8", "us-ascii", "klingon"])
def test_wrong_declarations_of_legacy_pages(encoding: str, declared: str) -> None:
    language, text = LEGACY[encoding]
    body = (text * 20).encode(encoding)
    inside = f'<html><head><meta charset="{declared}"></head><body>'.encode() + body
    assert text * 20 in decode_page(inside, language=language)
    header = f"text/html; charset={declared}"
    assert text * 20 in decode_page(b"<html><body>" + body, content_type=header, language=language)


def test_western_pages_keep_their_declaration() -> None:
    text = "Les élèves français étudient à Montréal où l'été est déjà très agréable. "
    page = f'<html><head><meta charset="iso-8859-1"></head><body>{text * 10}'
    for language in ("th", "ja", "en"):
        assert decode_page(page.encode("cp1252"), language=language) == page
    wide = f"<html><body>{text}"
    assert decode_page(wide.encode("utf-16-le"), content_type="text/html; charset=utf-16le") == wide


def test_few_broken_bytes_of_a_long_page() -> None:
    text = "これは日本語の文章です。東京都に住んでいる人々の生活について書いてある。\n"
    data = bytearray((text * 20_000).encode("cp932"))  # 1.4 MB
    for place in range(70 * 20, len(data) - 2, 2000):  # one in a thousand, all over the page
        data[place : place + 2] = b"\xff\xff"
    page = b'<html><head><meta charset="shift_jis"></head><body>' + bytes(data)
    found = decode_page(page, language="ja")
    assert found.count("東京都") > 19_000 and 300 < found.count("\ufffd") < 1000


def test_equal_names_in_several_folders_give_different_ids(tmp_path: Path) -> None:
    for folder in ("a/x", "a/y", "b/y", "c"):
        path = tmp_path / folder / ("f.jsonl" if folder != "c" else "g.jsonl")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"text": folder}) + "\n")
    patterns = [str(tmp_path / folder / "*.jsonl") for folder in ("a/x", "a/y", "b/y", "c")]
    source = SourceConfig.model_validate({"name": "s", "language": "en", "format": "jsonl", "path": patterns})
    assert [file.name for file in find_files(source)] == [
        "a/x/f.jsonl",
        "a/y/f.jsonl",
        "b/y/f.jsonl",
        "g.jsonl",
    ]


def test_changed_remote_file_is_a_changed_plan() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    source = SourceConfig.model_validate(
        {"name": "s", "language": "en", "format": "jsonl", "path": "memory://bucket/*.jsonl"}
    )
    memory.pipe("/bucket/a.jsonl", b'{"text": "one"}')
    before = find_files(source)
    assert find_files(source) == before
    memory.pipe("/bucket/a.jsonl", b'{"text": "two"}')  # as many bytes
    after = find_files(source)
    assert [file.name for file in after] == ["a.jsonl"] and after != before


NO_CHARACTER_SETS = "base64 hex zlib bz2 rot13 uu quopri undefined idna punycode utf-7 unicode_escape charmap"


@pytest.mark.parametrize("label", NO_CHARACTER_SETS.split())
def test_a_page_cannot_choose_a_codec_that_is_no_character_set(label: str) -> None:
    page = f'<meta charset="{label}"><p>{GOOD}</p>'.encode("cp1252") + "déjà vu – café".encode("cp1252")
    assert GOOD in decode_page(page, language="en")
    assert GOOD in decode_page(page, content_type=f"text/html; charset={label}", language="en")
    with pytest.raises(ValueError, match="a character set"):
        ReaderConfig(encoding=label)


def test_punycode_costs_nothing() -> None:
    # The codec needs a minute for 1.6 kB of this.
    data = b'<meta charset="punycode">' + b"\xe9" + b"a" * 2000 + b"-" + b"9" * 1600
    try:
        assert "a" * 2000 in decode_page(data)
    except UndecodableInput as error:
        assert "punycode" not in str(error)


@pytest.mark.parametrize("space", [" ", "\t", "\u00a0", "\u3000"])
def test_time_of_normalisation_grows_with_the_text_only(space: str) -> None:
    # Tried from each of the spaces, this is 5e11 steps: hours.
    run = space * 1_000_000
    assert normalise(f"a{run}b{run}\nc") == f"a{run}b\nc"


OURS = """
index.json manifest.json Report.json report.html contamination.jsonl mixture.json chat_template.jinja plan.json logs
index.json.partial
"""
NAMES_THAT_MEET = {
    ("wiki", "wiki.heldout"): "'wiki.heldout' names the held-out files of 'wiki'",
    ("wiki.Heldout", "wiki"): "'wiki.Heldout' names the held-out files of 'wiki'",
    ("Wiki", "wiki"): "differ in more than case",
    **{(name,): "no file of ours" for name in OURS.split()},
}


@pytest.mark.parametrize("names", NAMES_THAT_MEET, ids=" ".join)
def test_names_of_sources_that_meet_are_refused(names: tuple[str, ...]) -> None:
    sources = [{"name": name, "language": "en", "format": "jsonl", "path": "x"} for name in names]
    with pytest.raises(ValueError, match=NAMES_THAT_MEET[names]):
        CorpusConfig.model_validate({"sources": sources})


def parquet(path: Path, texts: list[bytes], **options: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array(texts, pa.binary())
    column = pa.StringArray.from_buffers(len(texts), *raw.buffers()[1:])  # whatever the bytes are
    pq.write_table(pa.table({"text": column}), path, **options)


def test_a_row_of_parquet_outside_utf8_costs_itself_only(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [b"one", b"b\xff\xfed", b"two", b"three"])
    documents, stats = read(tmp_path / "a.parquet", format="parquet")
    assert [document.text for document in documents] == ["one", "two", "three"]
    assert [document.id for document in documents] == [f"s/a.parquet#{row}" for row in (1, 3, 4)]
    assert dropped(stats) == {"read.undecodable": 1}
    with pytest.raises(DataError, match="row 2"):
        read(tmp_path / "a.parquet", "fail", format="parquet")


@pytest.mark.parametrize("nested", [False, True])
def test_a_value_stored_once_in_parquet_is_held_once(tmp_path: Path, nested: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    value = "a" * 3_000_000
    row: Any = {"text": value}
    options: dict[str, Any] = {}
    if nested:
        row = {"messages": [{"role": "user", "content": value}, {"role": "assistant", "content": "yes"}]}
        options = {"kind": "instruction"}
    pq.write_table(pa.Table.from_pylist([row] * 200), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 5000
    settings = SourceConfig.model_validate(
        {"name": "s", "language": "ja", "format": "parquet", "path": str(tmp_path)} | options
    )
    before, most = pa.total_allocated_bytes(), 0
    count = 0
    for _, record in read_parquet(settings, find_files(settings)[0]):
        most = max(most, pa.total_allocated_bytes() - before)
        assert not isinstance(record, BadRecord)
        count += 1
    assert count == 200 and most < 10 * len(value)  # 600 MB as rows


def test_a_row_group_that_swells_is_refused(tmp_path: Path) -> None:
    texts = [b"a" * 1_000_000, b"b" * 2_000_000, b"c"]
    parquet(tmp_path / "a.parquet", texts, compression="zstd", use_dictionary=False, row_group_size=2)
    documents, stats = read(
        tmp_path / "a.parquet", format="parquet", reader={"maximum_document_bytes": 100_000}
    )
    assert [document.id for document in documents] == ["s/a.parquet#3"]
    assert dropped(stats) == {"read.oversized": 1}
    [sample] = stats.samples()
    assert "row 1 to 2" in sample["id"]


def test_zstd_asks_for_memory_in_proportion(tmp_path: Path) -> None:
    import zstandard

    packed = zstandard.compress(bytes(200_000_000), 1)
    assert len(packed) < 50_000
    stream = ZstdStream(io.BytesIO(packed))
    longest, total = 0, 0
    while (data := stream._next()) is not None:
        longest, total = max(longest, len(data)), total + len(data)
    assert total == 200_000_000 and longest <= 1 << 27
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    stream = ZstdStream(io.BytesIO(packer.compress(bytes(150_000_000)) + packer.flush()))
    total = 0
    with pytest.raises(TruncatedInput, match="with a window of 1,073,741,824"):
        while (data := stream._next()) is not None:
            total += len(data)
    assert total <= 1 << 27


@pytest.mark.parametrize("name", ["pipe.jsonl", "socket.jsonl"])
def test_only_regular_files_are_read(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"text": GOOD}))
    if name == "pipe.jsonl":
        os.mkfifo(folder / name)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(folder / name))
    assert [document.text for document in read(folder)[0]] == [GOOD]
    said = f"source 's' passes over 1 of {{}} that is no regular file, the first {folder / name}"
    assert said.format(folder) in capsys.readouterr().err
    address = {"name": "s", "language": "en", "format": "jsonl", "path": f"file://{folder}"}
    assert [file.name for file in find_files(SourceConfig.model_validate(address))] == ["in/a.jsonl"]
    assert said.format(address["path"]) in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no regular file"):
        read(folder / name)
    with pytest.raises(OSError, match="not a regular file"), open_stream(str(folder / name)):
        pass


@pytest.mark.parametrize("order", [1, -1])
def test_dropped_records_that_share_an_identifier(order: int) -> None:
    """Whatever their order, and in whatever shards they were: the same samples."""
    texts = [f"text {number}" for number in range(4)][::order]
    together, first, second = DocumentStats(2), DocumentStats(2), DocumentStats(2)
    for number, text in enumerate(texts):
        for stats in (together, (first, second)[number % 2]):
            stats.drop("quality.words", Document(text, "same", metadata={"url": None}))
    first.merge(second)
    assert [item["text"] for item in together.samples()] == ["text 3", "text 2"]
    assert first.samples() == together.samples()
    assert first.dropped["quality.words"].documents == 4


def test_xz_with_a_dictionary_of_gigabytes(tmp_path: Path) -> None:
    """The old form of xz says the size of its dictionary in four bytes, which a kilobyte of text may set as it likes."""
    packed = bytearray(lzma.compress(b'{"text": "a"}\n' * 100, format=lzma.FORMAT_ALONE))
    packed[1:5] = (3 << 30).to_bytes(4, "little")
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(packed)
    with (
        pytest.raises(TruncatedInput, match="134,217,728 bytes of memory: Memory usage limit"),
        open_stream(str(path)) as stream,
    ):
        while stream.read(1):
            pass
        stream.read(1)


def test_xz_streams_follow_each_other(tmp_path: Path) -> None:
    """Padding between them as `xz` allows, larger than a step; a stream that is cut short is not the end."""
    texts = [bytes(range(256)) * 9000, b"", b"last\n"]
    streams = [lzma.compress(text, preset=9) for text in texts]
    path = tmp_path / "a.xz"
    path.write_bytes(streams[0] + bytes(4 << 20) + streams[1] + streams[2] + bytes(8))
    with open_stream(str(path)) as stream:
        assert stream.read() == b"".join(texts)
    path.write_bytes(streams[0] + streams[2][:-3])
    with pytest.raises(TruncatedInput, match="xz: ended before"), open_stream(str(path)) as stream:
        while stream.read(1 << 16):
            pass
        stream.read(1)
