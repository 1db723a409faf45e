"""Every byte of a run against the sums that were recorded when it was written."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.progress import Progress
from tsugiki.experiment.run.manifest import MANIFEST_NAME, Manifest
from tsugiki.experiment.run.status import read_status

_CHECKPOINT_MARK = "checkpoint.json"
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class DamagedFile:
    """A file that is not what was recorded.

    Attributes:
        file: relative to the run directory.
        problem: what is wrong with it.
        recorded_in: the file that holds the sum, relative to the run directory.
    """

    file: str
    problem: str
    recorded_in: str


@dataclass(frozen=True)
class Verification:
    """What :func:`verify_run` found.

    Attributes:
        run_dir: the run.
        verified: manifests and checkpoint.json files whose sums were compared, relative to the run directory.
        files: number of files compared.
        bytes: their size as recorded.
        damaged: files that are not what was recorded.
    """

    run_dir: str
    verified: tuple[str, ...]
    files: int
    bytes: int
    damaged: tuple[DamagedFile, ...]

    @property
    def intact(self) -> bool:
        """Whether every file is what was recorded."""
        return not self.damaged

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "intact": self.intact}

    def to_text(self) -> str:
        """Lines for the console."""
        lines = [f"damaged: {item.file}: {item.problem} ({item.recorded_in})" for item in self.damaged]
        total = f"{self.files:,} files, {self.bytes / 1e6:,.1f} MB, of {len(self.verified)} records"
        lines.append(f"{self.run_dir}: {total}: {len(self.damaged) or 'nothing'} damaged")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Expected:
    bytes: int
    sha256: str
    recorded_in: str


def verify_run(run_dir: Path, *, show: bool = True) -> Verification:
    """Compare all files of finished stages and of checkpoints with their recorded sizes and sha256.

    Finished stages are those with a manifest, superseded ones included; checkpoints also those of a training that
    is not finished. A checkpoint of a finished training is held to both records. Nothing is written.

    Args:
        run_dir: the run.
        show: progress on standard error.

    Raises:
        ConfigError: there is no run here.
    """
    read_status(run_dir)
    expected: dict[str, list[_Expected]] = {}
    damaged: list[DamagedFile] = []
    verified = []
    for record in _records(run_dir):
        name = record.relative_to(run_dir).as_posix()
        try:
            files = _manifest_files(record) if record.name == MANIFEST_NAME else _checkpoint_files(record)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            damaged.append(DamagedFile(name, f"unreadable: {str(error).splitlines()[0]}", name))
            continue
        verified.append(name)
        for file, (size, sha256) in files.items():
            path = (record.parent / file).relative_to(run_dir).as_posix()
            expected.setdefault(path, []).append(_Expected(size, sha256, name))
    total = sum(records[0].bytes for records in expected.values())
    with Progress("verify", total / 1e6, "MB", None if show else _Nowhere()) as progress:  # type: ignore[arg-type]
        damaged += _compare(run_dir, expected, progress)
    return Verification(str(run_dir), tuple(verified), len(expected), total, tuple(damaged))


class _Nowhere:
    """A stream that drops what is written."""

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _records(run_dir: Path) -> Iterator[Path]:
    for folder in sorted(path for path in run_dir.iterdir() if path.is_dir()):
        # A manifest in an unfinished folder is about to be renamed with it.
        if (folder / MANIFEST_NAME).exists() and not folder.name.endswith(".partial"):
            yield folder / MANIFEST_NAME
        yield from sorted(folder.glob(f"checkpoints/iter_*/{_CHECKPOINT_MARK}"))


def _manifest_files(path: Path) -> dict[str, tuple[int, str]]:
    manifest = Manifest.model_validate_json(path.read_bytes())
    if not manifest.lists_its_outputs:
        raise ValueError("the list of outputs does not have the digest of the manifest")
    return {name: (file.bytes, file.sha256) for name, file in manifest.outputs.items()}


def _checkpoint_files(path: Path) -> dict[str, tuple[int, str]]:
    files = json.loads(path.read_bytes())["files"]
    return {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}


def _compare(
    run_dir: Path, expected: dict[str, list[_Expected]], progress: Progress
) -> Iterator[DamagedFile]:
    lock = threading.Lock()

    def advance(count: int) -> None:
        with lock:
            progress.advance(count / 1e6)

    def compare(path: str) -> list[DamagedFile]:
        try:
            size, digest = _read(run_dir / path, advance)
        except FileNotFoundError:
            return [DamagedFile(path, "missing", expected[path][0].recorded_in)]
        except OSError as error:
            return [DamagedFile(path, f"unreadable: {error.strerror}", expected[path][0].recorded_in)]
        found = []
        for record in expected[path]:
            if size != record.bytes:
                problem = f"{size:,} bytes, expected {record.bytes:,}"
            elif digest != record.sha256:
                problem = f"sha256 {digest[:16]}…, expected {record.sha256[:16]}…"
            else:
                continue
            found.append(DamagedFile(path, problem, record.recorded_in))
        return found

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(compare, expected):
            yield from found


def _read(path: Path, advance: Callable[[int], None]) -> tuple[int, str]:
    """Size and sha256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            advance(len(chunk))
    return size, digest.hexdigest()
