"""A full disk: a clear error, nothing that looks complete, and the same bytes once there is room."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_corpus_stage import config, contents, run
from test_tokens_stage import encode, make_corpus

from tsugiki.data import corpus
from tsugiki.data.common import executor as execution
from tsugiki.data.common.jsonl_shards import read_documents
from tsugiki.experiment.errors import EnvironmentError_
from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=200m", folder], check=True)


def noise(seed: int, characters: int) -> str:
    rng = random.Random(seed)  # does not compress
    return "".join(
        rng.choices("abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=characters)
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_corpus(
    tmp_path: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        lines = [json.dumps({"text": noise(100 * number + item, 20_000)}) for item in range(20)]
        (tmp_path / f"in/{number}.jsonl").write_text("\n".join(lines))
    source = {
        "name": "web",
        "language": "en",
        "format": "jsonl",
        "path": str(tmp_path / "in/*"),
        "filter": False,
    }
    settings = config(tmp_path, sources=[source])
    run(settings, tmp_path / "roomy")
    if workers > 1:
        monkeypatch.setattr(execution, "INLINE_BELOW_BYTES", 0)
        monkeypatch.setattr(corpus, "INLINE_BELOW_BYTES", 0)
    output = small_disk / "out"
    with pytest.raises(EnvironmentError_) as caught:
        run(settings, output, workers)
    assert "No space left on device" in str(caught.value)
    assert "free disk space" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert not (output / "index.json").exists()
    shards = sorted(output.rglob("*.jsonl.zst"))
    assert 0 < len(shards) < 6
    for shard in shards:  # those that are there are whole
        assert len(list(read_documents(shard))) == 20
    enlarge(small_disk)
    run(settings, output, workers)
    assert contents(output) == contents(tmp_path / "roomy")


@pytest.mark.slow
def test_tokens(tmp_path: Path, small_disk: Path) -> None:
    texts = {"en": [noise(number, 100_000) for number in range(12)]}
    folder = make_corpus(tmp_path / "corpus", texts)
    tokenizer = tmp_path / "tokenizer"
    write_hf_tokenizer(mistral_v1_model(), tokenizer)
    encode(folder, tokenizer, tmp_path / "roomy")
    output = small_disk / "out"
    with pytest.raises(EnvironmentError_) as caught:
        encode(folder, tokenizer, output)
    assert "No space left on device" in str(caught.value)
    assert not list(output.rglob("*.idx")) and not (output / "mixture.json").exists()
    parts = output / ".work/src-en"
    done = [int(path.name) for path in (output / ".work/logs/completions").iterdir()]
    assert done
    for rank in done:  # a marker stands for a whole part
        name = parts / f"train-{rank:05d}"
        whole = tmp_path / "roomy/.work/src-en" / name.name
        assert name.with_suffix(".ids").read_bytes() == whole.with_suffix(".ids").read_bytes()
    enlarge(small_disk)
    encode(folder, tokenizer, output)
    for name in ("src-en.bin", "src-en.idx", "src-en.heldout.bin", "mixture.json"):
        assert (output / name).read_bytes() == (tmp_path / "roomy" / name).read_bytes()


def test_joining_the_parts(tmp_path: Path, small_disk: Path) -> None:
    """There is room for the parts, not for the dataset: no .idx appears that would make it whole."""
    texts = {"en": [noise(number, 45_000) for number in range(9)]}
    folder = make_corpus(tmp_path / "corpus", texts)
    tokenizer = tmp_path / "tokenizer"
    write_hf_tokenizer(mistral_v1_model(), tokenizer)
    output = small_disk / "out"
    with pytest.raises((EnvironmentError_, OSError), match="No space left"):
        encode(folder, tokenizer, output)
    assert len(list((output / ".work/logs/completions").iterdir())) == 9
    assert not list(output.rglob("*.idx")) and not list(output.rglob("*.bin"))
    enlarge(small_disk)
    encode(folder, tokenizer, output)
    assert (output / "src-en.idx").exists()
