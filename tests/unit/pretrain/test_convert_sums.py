"""A byte that changed since a file was written is noticed while graft, import and export read it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conversion_graph import graph, make_inputs, run

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.files import sha256_file
from tsugiki.experiment.run.manifest import Manifest, describe_outputs
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig

NO_VERIFY = ExportConfig(verify=False, shard_bytes=1_000_000)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    run(folder, "graft")
    manifest = Manifest.load(folder / "run" / "graft")
    assert manifest is not None
    # The base and the training as stages of a run have them, and a base in the hub's cache.
    outputs, digest = describe_outputs(folder / "base")
    manifest.model_copy(update={"outputs": outputs, "digest": digest}).save(folder / "base")
    iteration = folder / "train" / "checkpoints" / "iter_0000005"
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in iteration.iterdir()
        if path.name != "checkpoint.json"
    }
    (iteration / "checkpoint.json").write_text(json.dumps({"iteration": 5, "files": files}))
    for name in ("blobs", "snapshots/main"):
        (folder / "hub" / name).mkdir(parents=True)
    for path in (folder / "base").iterdir():
        if path.suffix == ".safetensors":
            blob = folder / "hub" / "blobs" / sha256_file(path)
            shutil.copyfile(path, blob)
            (folder / "hub" / "snapshots" / "main" / path.name).symlink_to(f"../../blobs/{blob.name}")
        elif path.name != "manifest.json":
            shutil.copyfile(path, folder / "hub" / "snapshots" / "main" / path.name)
    return folder


@pytest.fixture
def folder(inputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(inputs, tmp_path / "here", symlinks=True))


def largest(folder: Path) -> Path:
    return max((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path, back: bool = False) -> None:
    """The lowest bit of a number, in a file that keeps size and times."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 & ~3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def imported(name: str) -> Callable[[Path], None]:
    return lambda folder: _ignored(import_checkpoint(folder / name, folder / "out", workers=1))


def exported(name: str) -> Callable[[Path], None]:
    return lambda folder: _ignored(
        export_checkpoint(folder / name, folder / "out", config=NO_VERIFY, workers=1)
    )


def _ignored(_: object) -> None:
    pass


CASES = {
    "base": ("base", imported("base"), "base/manifest.json"),
    "hub": ("hub/snapshots/main", imported("hub/snapshots/main"), "hub/blobs/"),
    "graft": ("run/graft/checkpoint", exported("run/graft"), "run/graft/manifest.json"),
    "train": ("train/checkpoints/iter_0000005", exported("train"), "iter_0000005/checkpoint.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_flipped_bit_is_refused_by_name(folder: Path, case: str) -> None:
    place, convert, recorded = CASES[case]
    victim = largest(folder / place)
    flip(victim)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"is damaged[\s\S]*{victim.name}[\s\S]*{recorded}"):
            convert(folder)
        assert not (folder / "out").exists()
    flip(victim)  # with the size and times that it had: nothing of the damaged one is used
    convert(folder)
    whole = shutil.move(folder / "out", folder / "whole")
    convert(folder)
    for path in Path(whole).rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (folder / "out" / path.relative_to(whole)).read_bytes()


def test_what_a_damaged_file_became_is_not_gone_on_with(folder: Path) -> None:
    expected = {path.name: path.read_bytes() for path in (folder / "run/graft/checkpoint").iterdir()}
    shutil.rmtree(folder / "run" / "graft")
    victim = largest(folder / "base")
    flip(victim)
    with pytest.raises(CheckpointError, match="is damaged"):
        run(folder, "graft")
    made = graph(folder)
    assert not made.directory("graft").exists()
    flip(victim)
    run(folder, "graft")
    assert {path.name: path.read_bytes() for path in (folder / "run/graft/checkpoint").iterdir()} == expected


def test_edited_manifest_is_an_error(folder: Path) -> None:
    path = folder / "run" / "graft" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"].pop("checkpoint/.metadata")
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="the manifest of a stage was changed"):
        exported("run/graft")(folder)


def test_files_without_a_record_are_read_all_the_same(folder: Path) -> None:
    (folder / "base" / "manifest.json").write_text('{"name": "an app", "icons": []}')
    flip(largest(folder / "base"))
    imported("base")(folder)
    assert (folder / "out" / "graft.json").is_file()
