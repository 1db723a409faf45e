"""Files that appear complete or not at all, and what their bytes are."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tsugiki.experiment import files
from tsugiki.experiment.files import atomic_file, read_json, sha256_file, sha256_json, write_json_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "a.bin"
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        files.os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_size, path.exists()))
    )
    with atomic_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert synced == [(3, False)], "all bytes, before the file has its name"


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"former")
    with pytest.raises(OSError, match="disk"), atomic_file(path) as file:
        file.write(b"new")
        raise OSError("disk is full")
    assert path.read_bytes() == b"former"
    assert names(tmp_path) == ["a.bin"]


def test_what_a_kill_leaves_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def die() -> None:
        with atomic_file(path) as file:
            file.write(b"x" * 100_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == ["a.bin.partial"]
    with atomic_file(path) as file:
        file.write(b"new")
    assert names(tmp_path) == ["a.bin"] and path.read_bytes() == b"new"


def test_writers_of_a_shared_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_file(path, shared=True) as file:
        file.write(b"[1,")
        context = multiprocessing.get_context("fork")
        other = context.Process(target=write_json_atomically, args=(path, [2]), kwargs={"shared": True})
        other.start()
        other.join()
        assert read_json(path) == [2]
        file.write(b"1]")
    assert read_json(path) == [1, 1]


def test_json_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"b": "日本", "a": [1]}
    write_json_atomically(path, value)
    assert path.read_text(encoding="utf-8") == '{\n  "b": "日本",\n  "a": [\n    1\n  ]\n}\n'
    write_json_atomically(path, value, indent=None, sort_keys=True)
    assert path.read_text(encoding="utf-8") == '{"a": [1], "b": "日本"}'
    with pytest.raises(UnicodeEncodeError):
        write_json_atomically(path, ["\ud800"])
    assert read_json(path) == value
    write_json_atomically(path, ["\ud800"], errors="replace")
    assert read_json(path) == ["?"]


def test_sha256_of_files_and_values(tmp_path: Path) -> None:
    """Values of sha256sum."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "b").write_text(json.dumps({"a": 1, "b": "é"}, ensure_ascii=False), encoding="utf-8")
    assert sha256_json({"b": "é", "a": 1}) == sha256_file(tmp_path / "b")


def test_what_kills_leave_of_shared_files_goes_when_nobody_can_still_write_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for name, age in {"a.json.1.partial": 7200, "a.json.2.partial": 0, "b.json.1.partial": 7200}.items():
        (tmp_path / name).write_text("{")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_json_atomically(path, {}, shared=True)
    assert names(tmp_path) == ["a.json", "a.json.2.partial", "b.json.1.partial"]
