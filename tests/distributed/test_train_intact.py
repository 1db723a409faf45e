"""Training refuses tokens and weights that are not what was recorded when they were written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from training_case import train, write_graft, write_tokens

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.run.manifest import Manifest, describe_outputs


def seal(folder: Path) -> None:
    """Write the manifest of a finished stage."""
    outputs, digest = describe_outputs(folder)
    Manifest(
        stage=folder.name, key="", key_parts={}, config=None, inputs={}, outputs=outputs, digest=digest, versions={},
        git_revision=None, counts={}, metrics={}, started="", seconds=0,
    ).save(folder)  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    write_graft(folder)
    write_tokens(folder)
    for name in ("graft", "tokens"):
        seal(folder / name)
    train(folder, folder / "begun", save_interval_steps=10)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 & ~3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["graft/checkpoint", "tokens"])
@pytest.mark.parametrize("parallel", [{}, {"data": 2}], ids=["alone", "dp2"])
def test_flipped_bit_is_refused_by_name(
    case: Path, tmp_path: Path, place: str, parallel: dict[str, int]
) -> None:
    for name in ("graft", "tokens"):
        shutil.copytree(case / name, tmp_path / name)
    files = [path for path in (tmp_path / place).iterdir() if path.suffix in (".distcp", ".bin")]
    victim = max(files, key=lambda path: path.stat().st_size)
    flip(victim)
    with pytest.raises(CheckpointError, match=rf"is damaged[\s\S]*{victim.name}[\s\S]*manifest\.json"):
        train(tmp_path, tmp_path / "out", parallel=parallel)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_tokens_are_compared_when_training_goes_on(case: Path, tmp_path: Path) -> None:
    for name in ("graft", "tokens", "begun"):
        shutil.copytree(case / name, tmp_path / name)
    shutil.rmtree(tmp_path / "begun" / "checkpoints" / "iter_0000020")
    for victim in (tmp_path / "graft" / "checkpoint").glob("*.distcp"):
        flip(victim)  # not read again
    train(tmp_path, tmp_path / "begun", save_interval_steps=10)
    shutil.rmtree(tmp_path / "begun" / "checkpoints" / "iter_0000020")
    flip(tmp_path / "tokens" / "ja.bin")
    with pytest.raises(CheckpointError, match=r"is damaged[\s\S]*ja\.bin"):
        train(tmp_path, tmp_path / "begun", save_interval_steps=10)
