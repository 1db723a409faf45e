"""Every byte of a run against the sums that were recorded when it was written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.progress import Progress
from tsugiki.experiment.run.checkpoint_record import CHECKPOINT_MARK, Sum, checkpoint_sums
from tsugiki.experiment.run.manifest import MANIFEST_NAME
from tsugiki.experiment.run.status import read_status
from tsugiki.experiment.run.sums import file_sum, manifest_sums


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
    expected: dict[str, list[Sum]] = {}
    damaged: list[DamagedFile] = []
    verified = []
    for record in _records(run_dir):
        name = record.relative_to(run_dir).as_posix()
        try:
            files = manifest_sums(record) if record.name == MANIFEST_NAME else checkpoint_sums(record)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            damaged.append(DamagedFile(name, f"unreadable: {why}", name))
            continue
        verified.append(name)
        for file, recorded in files.items():
            expected.setdefault(file.relative_to(run_dir).as_posix(), []).append(recorded)
    total = sum(records[0].bytes or 0 for records in expected.values())
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
        yield from sorted(folder.glob(f"checkpoints/iter_*/{CHECKPOINT_MARK}"))


def _compare(run_dir: Path, expected: dict[str, list[Sum]], progress: Progress) -> Iterator[DamagedFile]:
    lock = threading.Lock()

    def advance(count: int) -> None:
        with lock:
            progress.advance(count / 1e6)

    def named(record: Sum) -> str:
        return record.recorded_in.relative_to(run_dir).as_posix()

    def compare(path: str) -> list[DamagedFile]:
        try:
            size, digest = file_sum(run_dir / path, advance)
        except FileNotFoundError:
            return [DamagedFile(path, "missing", named(expected[path][0]))]
        except OSError as error:
            return [DamagedFile(path, f"unreadable: {error.strerror}", named(expected[path][0]))]
        found = []
        for record in expected[path]:
            if size != record.bytes:
                problem = f"{size:,} bytes, expected {record.bytes:,}"
            elif digest != record.sha256:
                problem = f"sha256 {digest[:16]}…, expected {record.sha256[:16]}…"
            else:
                continue
            found.append(DamagedFile(path, problem, named(record)))
        return found

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(compare, expected):
            yield from found
