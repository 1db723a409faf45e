"""The sums that were recorded of files when they were written, and comparing files with them while they are read."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.run.checkpoint_record import CHECKPOINT_MARK, Sum, checkpoint_sums
from tsugiki.experiment.run.manifest import MANIFEST_NAME, Manifest

_CHUNK_BYTES = 8 * 2**20
_HOMES = 3
"""``train/checkpoints/iter_…/file`` stands in the manifest of ``train``."""


def manifest_sums(path: Path) -> dict[Path, Sum]:
    """Sums in the manifest of a finished stage.

    Raises:
        ValueError: it is none, or its list of outputs was changed.
    """
    manifest = Manifest.model_validate_json(path.read_bytes())
    if not manifest.lists_its_outputs:
        raise ValueError("the list of outputs does not have the digest of the manifest")
    return {path.parent / name: Sum(file.sha256, path, file.bytes) for name, file in manifest.outputs.items()}


def recorded_sums(files: Iterable[Path]) -> dict[Path, Sum]:
    """The sums of those files that have one.

    Looked for in the checkpoint.json beside a file, in the manifest of the stage it belongs to, and in its name: the
    cache of the Hugging Face hub calls files of weights by their sha256, and links to them.

    Raises:
        CheckpointError: a manifest of ours was changed.
    """
    found: dict[Path, Sum] = {}
    records: dict[Path, dict[Path, Sum]] = {}
    for file in sorted(set(files)):
        for home in list(file.parents)[:_HOMES]:
            if home not in records:
                records[home] = _records(home)
            if file in records[home]:
                found[file] = records[home][file]
                break
        else:
            blob = file.resolve()
            if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
                found[file] = Sum(blob.name, blob)
    return found


def _records(home: Path) -> dict[Path, Sum]:
    mark, manifest = home / CHECKPOINT_MARK, home / MANIFEST_NAME
    try:
        if mark.is_file():
            return checkpoint_sums(mark)
    except (ValueError, LookupError, TypeError, AttributeError):  # an import's, or one of another origin
        pass
    if Manifest.load(home) is None:  # none, or not ours
        return {}
    try:
        return manifest_sums(manifest)
    except ValueError as error:
        raise CheckpointError(
            "the manifest of a stage was changed", where=manifest, got=error, fix="run that stage again"
        ) from error


@contextmanager
def sums_compared(files: Iterable[Path], damaged: Callable[[], None] | None = None) -> Iterator[None]:
    """Compare files with their recorded sums in threads beside the work that reads them; the end waits for both.

    Both find the same pages in the memory of the kernel, so what is larger than memory is read once if they go
    through it at the same pace.

    Args:
        files: that are read; those without a recorded sum are left out.
        damaged: called before the error is raised: what was made of a damaged file is not to be continued.

    Raises:
        CheckpointError: a file is not what was recorded.
    """
    expected = recorded_sums(files)
    stop = threading.Event()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            found = [(path, pool.submit(file_sum, path, stop=stop)) for path in expected]
            yield
        except BaseException:
            stop.set()
            raise
        for path, answer in found:
            try:
                compare(path, expected[path], answer.result())
            except CheckpointError:
                stop.set()
                if damaged is not None:
                    damaged()
                raise


def compare(path: Path, expected: Sum, found: tuple[int, str]) -> None:
    """Refuse a file whose size and sha256 are not those recorded.

    Raises:
        CheckpointError: naming both.
    """
    size, sha256 = found
    if expected.bytes not in (None, size) or sha256 != expected.sha256:
        raise CheckpointError(
            "a file is damaged: it is not what was recorded when it was written",
            where=path,
            got=f"{size:,} bytes, sha256 {sha256[:16]}…",
            expected=f"{'' if expected.bytes is None else f'{expected.bytes:,} bytes, '}"
            f"sha256 {expected.sha256[:16]}… ({expected.recorded_in})",
            fix="put back a copy, download the file again, or run the stage that makes it again; `tsugiki verify RUN` "
            "names all damaged files of a run",
        )


def file_sum(
    path: Path, advance: Callable[[int], None] | None = None, stop: threading.Event | None = None
) -> tuple[int, str]:
    """Size and sha256 of a file.

    Args:
        path: of the file.
        advance: told the bytes of each step.
        stop: when set, the rest is not read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while not (stop is not None and stop.is_set()) and (chunk := file.read(_CHUNK_BYTES)):
            digest.update(chunk)
            size += len(chunk)
            if advance is not None:
                advance(len(chunk))
    return size, digest.hexdigest()
