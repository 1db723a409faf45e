"""Files whose sums stand beside them are not read again."""

import json
import os
from pathlib import Path

import pytest

from tsugiki.experiment.files import sha256_file
from tsugiki.experiment.run import digest


@pytest.mark.parametrize("state", ["as written", "longer", "newer", "damaged record"])
def test_a_checkpoints_files_are_read_only_where_its_record_cannot_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    folder = tmp_path / "checkpoints" / "iter_0000004"
    folder.mkdir(parents=True)
    shard, mark = folder / "__0_0.distcp", folder / "checkpoint.json"
    shard.write_bytes(b"weights")
    (tmp_path / "model.json").write_text("{}")
    record = {"bytes": 7, "sha256": sha256_file(shard)}
    mark.write_text("{" if state == "damaged record" else json.dumps({"files": {shard.name: record}}))
    if state == "longer":
        shard.write_bytes(b"weights and more")
    written = mark.stat().st_mtime_ns
    shard_time = written + 10**9 if state == "newer" else written - 10**9
    os.utime(shard, ns=(shard_time, shard_time))
    expected = {name: sha256_file(tmp_path / name) for name in digest.list_files(tmp_path)}

    read: list[str] = []
    monkeypatch.setattr(digest, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    assert digest.digest_files(tmp_path, expected) == expected
    assert sorted(read) == sorted([mark.name, "model.json", *([] if state == "as written" else [shard.name])])
