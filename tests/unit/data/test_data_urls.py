"""Sources behind fsspec URLs, and documents whose address is on a blocklist."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import random
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from test_corpus_stage import config, contents, documents, run, text, write_jsonl

from tsugiki.data.filters import blocked_urls
from tsugiki.experiment.errors import ConfigError, DataError


def records(seed: int, count: int = 5) -> list[dict[str, object]]:
    rng = random.Random(seed)
    return [{"id": f"{seed}-{number}", "text": text(rng)} for number in range(count)]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def source(path: str) -> dict[str, object]:
    return {"name": "web", "language": "en", "format": "jsonl", "path": path}


def test_glob_on_a_remote_file_system_gives_what_local_files_give(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    for number in range(3):
        path = tmp_path / f"in/part{number}.jsonl.gz"
        write_jsonl(path, records(number))
        memory.pipe(f"/bucket/in/part{number}.jsonl.gz", path.read_bytes())
    memory.pipe("/bucket/in/other.txt", b"not a part")
    run(config(tmp_path, sources=[source(str(tmp_path / "in/*.jsonl.gz"))]), tmp_path / "local")
    run(config(tmp_path, sources=[source("memory://bucket/in/*.jsonl.gz")]), tmp_path / "remote")
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    run(config(tmp_path, sources=[source("memory://bucket/in/part1.jsonl.gz")]), tmp_path / "single")
    assert len([*documents(tmp_path / "single"), *documents(tmp_path / "single", "heldout")]) == 5


def test_large_remote_file_is_divided(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records(1, 40)).encode()
    memory.pipe("/bucket/large.jsonl", lines)
    settings = config(
        tmp_path, sources=[source("memory://bucket/large.jsonl")], shard_input_bytes=len(lines) // 3
    )
    report = run(settings, tmp_path / "out")
    assert report["sources"][0]["read"]["documents"] == 40  # type: ignore[index]
    assert len(list((tmp_path / "out/web").glob("0*.jsonl.zst"))) > 1


def test_url_over_http(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    data = gzip.compress("".join(json.dumps(record) + "\n" for record in records(2)).encode())
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.jsonl.gz").write_bytes(data)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        run(config(tmp_path, sources=[source(f"{address}/a.jsonl.gz")]), tmp_path / "out")
        with pytest.raises((ConfigError, DataError)) as caught:
            run(config(tmp_path, sources=[source(f"{address}/missing.jsonl.gz")]), tmp_path / "none")
        server.shutdown()
    assert "missing.jsonl.gz" in str(caught.value)
    kept = [*documents(tmp_path / "out"), *documents(tmp_path / "out", "heldout")]
    assert len(kept) == 5


def test_unknown_kind_of_url_and_no_match(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(DataError, match="cannot list the files of a URL"):
        run(config(tmp_path, sources=[source("nosuch://bucket/x.jsonl")]), tmp_path / "a")
    with pytest.raises(ConfigError, match="no input files"):
        run(config(tmp_path, sources=[source("memory://bucket/*.jsonl")]), tmp_path / "b")


def test_blocked_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datatrove's filter with lists of a few lines in place of its 4.5 million."""
    from datatrove.pipeline.filters import url_filter

    assets, cache = tmp_path / "assets", tmp_path / "cache"
    assets.mkdir()
    cache.mkdir()
    with tarfile.open(assets / "url_filterblacklistsv0_3_0.tar.gz", "w:gz") as tar:
        for name, lines in (
            ("domains", "bad.com\nsub.mixed.co.jp\n"),
            ("urls", "https://good.org/x\n"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(lines)
            tar.addfile(entry, io.BytesIO(lines.encode()))
    for name, words in (
        ("banned_words", "casino"),
        ("banned_subwords", "xxxxvideo"),
        ("soft_banned_words", "hot\nbabes"),
    ):
        (assets / f"{name}.txt").write_text(words + "\n")
    monkeypatch.setattr(url_filter, "ASSETS_PATH", str(assets))
    monkeypatch.setattr(url_filter, "cached_assets_path", lambda **_: str(cache))
    blocked_urls._blocklists.cache_clear()
    urls = [
        None, "https://good.org/page", "https://www.mixed.co.jp/", "https://good.org/one-hot-day",  # kept
        "https://www.bad.com/a", "https://sub.mixed.co.jp/", "https://good.org/x", "https://good.org/casino/1",
        "https://good.org/hot-babes", "https://good.org/xxxxvideos",
    ]  # fmt: skip
    rng = random.Random(4)
    write_jsonl(
        tmp_path / "in/a.jsonl", [{"id": str(n), "text": text(rng), "url": url} for n, url in enumerate(urls)]
    )
    report = run(config(tmp_path / "in", blocked_urls=True), tmp_path / "out")
    counts = {rule: count["documents"] for rule, count in report["sources"][0]["dropped"].items()}  # type: ignore[index]
    assert counts == {
        f"blocked_url.{reason}": 1
        for reason in (
            "domain",
            "subdomain",
            "url",
            "hard_blacklisted",
            "soft_blacklisted",
            "blacklisted_subword",
        )
    }
    kept = [*documents(tmp_path / "out"), *documents(tmp_path / "out", "heldout")]
    blocked_urls._blocklists.cache_clear()
    assert sorted(item["id"] for item in kept) == ["web/0", "web/1", "web/2", "web/3"]  # type: ignore[type-var]
