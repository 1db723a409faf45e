"""Files of sources whatever is in them: with `on_error: skip` nothing stops the pass, and what is kept is text.

From the bytes of a file through reader, extraction, normalisation and the filters of a language, in this process.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fuzzing import NASTY, as_json, bounded, fuzz, mutated_bytes, mutated_json
from hypothesis import example, given
from hypothesis import strategies as st

from tsugiki.data.common.shard import Shard
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import CorpusConfig
from tsugiki.data.inputs.planning import find_files
from tsugiki.data.passes.filter import FilterShards
from tsugiki.data.profiles import load_profile
from tsugiki.experiment.artefacts.shards import read_shard

# warcio leaves its own temporary files to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")]

ROOT = Path(__file__).resolve().parents[2]
PROFILES = [str(ROOT / "tests/fixtures/filters"), str(ROOT / "configs/filters")]
LINES = (ROOT / "tests/fixtures/text/ja.jsonl").read_bytes().splitlines()[:4]
TEXT = json.loads(LINES[0])["text"]
HTML = f"""<!doctype html><html lang="ja"><head><meta charset="utf-8"><title>題</title></head>
<body><h1>見出し</h1><p>{TEXT}</p><table><tr><td>1</td></tr></table><script>x()</script></body></html>"""
CHARSETS = (
    "utf-8", "shift_jis", "euc-jp", "iso-2022-jp", "gb18030", "big5", "windows-1252", "utf-16", "utf-7", "base64",
    "hex", "zlib", "rot13", "punycode", "idna", "undefined", "unicode_escape", "x-user-defined", "", "utf-8;utf-16",
)  # fmt: skip


def passed(path: Path, work: Path, **source: Any) -> list[dict[str, Any]]:
    """What the first pass of the corpus keeps of a file."""
    values = {"name": "web", "language": "ja", "format": "jsonl", "path": str(path)} | source
    config = CorpusConfig.model_validate(
        {"sources": [values], "profiles": PROFILES, "heldout": {"fraction": 0}}
    )
    files = find_files(config.sources[0])
    shard = Shard(0, "web", 0, tuple(files))
    profiles = {} if source.get("kind") == "instruction" else {"web": load_profile("ja", PROFILES)}
    place = Workspace(work)
    with bounded():
        list(FilterShards(config, [shard], profiles, place).run(None, 0, 1))
    kept = list(read_shard(place.filtered(shard)))
    for document in kept:
        document["text"].encode()
        assert document["id"]
    return kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


def test_the_material_is_kept(folder: Path) -> None:
    """The originals pass, so that what is changed in them reaches every step."""
    (folder / "in.jsonl").write_bytes(b"\n".join(LINES))
    assert len(passed(folder / "in.jsonl", folder / "work")) == len(LINES)


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """A page in some encoding that declares another one, with changes."""
    declared, encoding = draw(st.sampled_from(CHARSETS)), draw(st.sampled_from(CHARSETS[:8]))
    data = HTML.replace("utf-8", declared).encode(encoding, errors="replace")
    return draw(st.one_of(st.just(data), mutated_bytes(data), st.binary(max_size=300)))


@fuzz(40)
@given(data=pages())
@example(data=b"")
@example(data=b"<p>" * 3000)
@example(data=b"<html><meta charset=punycode>" + b"a" * 2000)
def test_pages(folder: Path, data: bytes) -> None:
    (folder / "page.html").write_bytes(data)
    passed(folder / "page.html", folder / "work", format="html")


@fuzz(60)
@given(
    data=st.one_of(
        st.binary(max_size=500), mutated_bytes(TEXT.encode(), 12), st.text(max_size=300).map(str.encode)
    )
)
@example(data=b" " * 100_000)
@example(data=b"\xff\xfe\x00")
@example(data="\u3000\n".encode() * 3000)
def test_plain_text(folder: Path, data: bytes) -> None:
    (folder / "text.txt").write_bytes(data)
    for documents in ("file", "line", "paragraph"):
        passed(folder / "text.txt", folder / "work", format="text", reader={"documents": documents})


RECORD = {"id": "a", "url": "http://x.org/a", "text": TEXT, "meta": {"text": TEXT}}
CONVERSATION = {"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]}
PAIR = {"id": "a", "source": "The market was open.", "target": TEXT}


@fuzz(80)
@given(
    rows=st.lists(
        st.one_of(
            mutated_json(RECORD).map(as_json), mutated_json(CONVERSATION).map(as_json), mutated_json(PAIR).map(as_json),
            mutated_bytes(LINES[0]),
        ),
        min_size=1, max_size=4,
    ),
    kind=st.sampled_from(("text", "instruction", "parallel")),
    key=st.sampled_from(("text", "meta.text", "id", "meta")),
)  # fmt: skip
@example(
    rows=[as_json(CONVERSATION | {"id": "a", "text": "?"})] * 2, kind="text", key="text"
)  # shared identifier
@example(rows=[b"[" * 100_000, b"1" * 5000, b"{}", b"null"], kind="text", key="text")
def test_jsonl(folder: Path, rows: list[bytes], kind: str, key: str) -> None:
    (folder / "rows.jsonl").write_bytes(b"\n".join(rows))
    options = {"parallel": {"target_language": "en"}} if kind == "parallel" else {}
    passed(folder / "rows.jsonl", folder / "work", kind=kind, reader={"text_key": key}, **options)


def parquet() -> bytes:
    stream = io.BytesIO()
    texts = [json.loads(line)["text"] for line in LINES]
    table = pa.table({"text": texts, "id": ["a", None, "c", "d"], "url": [None, "u", "", "x"]})
    pq.write_table(table, stream, row_group_size=2)
    return stream.getvalue()


def warc() -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=False)
    for number in range(2):
        headers = StatusAndHeaders(
            "200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1"
        )
        record = writer.create_warc_record(
            f"http://a.org/{number}", "response", payload=io.BytesIO(HTML.encode()), http_headers=headers
        )
        writer.write_record(record)
    return stream.getvalue()


ROWS = b"\n".join(LINES)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)
    WARC = warc()
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "a.jsonl.gz": (gzip.compress(ROWS), "jsonl"),
    "a.jsonl.zst": (zstandard.ZstdCompressor(write_checksum=True).compress(ROWS), "jsonl"),
    "a.jsonl.xz": (lzma.compress(ROWS), "jsonl"),
    "a.parquet": (parquet(), "parquet"),
    "a.warc": (WARC, "warc"),
    "a.warc.gz": (gzip.compress(WARC), "warc"),
    "a.warc.wet": (WARC.replace(b"response", b"conversion"), "wet"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(folder: Path, name: str) -> None:
    original, kind = ARCHIVES[name]
    path = folder / name

    @fuzz(30)
    @given(data=mutated_bytes(original))
    @example(data=original)
    @example(data=b"")
    @example(data=original + original)
    @example(data=original[: len(original) // 2])
    def changed(data: bytes) -> None:
        path.write_bytes(data)
        passed(path, folder / "work", format=kind)

    changed()


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.jsonl.zst", "bomb.jsonl.xz"])
def test_much_in_little(folder: Path, name: str) -> None:
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress, "xz": lzma.compress}[
        name[-3:].lstrip(".")
    ]
    (folder / name).write_bytes(pack(b" " * 2**27))
    passed(folder / name, folder / "work")


@fuzz(40)
@given(
    values=st.lists(st.sampled_from(NASTY), min_size=1, max_size=4),
    keys=st.lists(st.sampled_from(("text", "id", "url", "meta")), min_size=1, max_size=3, unique=True),
)
def test_parquet_columns_of_any_type(folder: Path, values: list[Any], keys: list[str]) -> None:
    try:
        table = pa.table(dict.fromkeys(keys, values))
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        return  # Arrow has no such column
    try:
        pq.write_table(table, folder / "any.parquet")
    except pa.ArrowException:
        return
    passed(folder / "any.parquet", folder / "work", format="parquet")
