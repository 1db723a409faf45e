"""Content hashes of files, cached by size, times and inode."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.files import sha256_file, sha256_json, write_json_atomically
from tsugiki.experiment.run.checkpoint_record import CHECKPOINT_MARK, checkpoint_sums

_SAMPLED_ABOVE_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**20
_LENGTH, _EARLIER_LENGTH = 6, 3
"""Of what is remembered of a file; earlier versions kept size, modification time and hash only."""
VOLATILE_SUFFIXES = (".html", ".png", ".svg", ".log")
"""Files that tell a run apart from another without changing what it produced."""
VOLATILE_NAMES = frozenset({"manifest.json", "report.json", "report.md", "report.csv", "metrics.jsonl"})


def is_volatile(relative: str) -> bool:
    """Whether a file is left out of the content hash of a stage."""
    name = relative.rsplit("/", 1)[-1]
    return name in VOLATILE_NAMES or name.endswith(VOLATILE_SUFFIXES)


def list_files(directory: Path) -> list[str]:
    """All files below a directory, relative, sorted; hidden scratch (``.work``) left out."""
    found: list[str] = []
    for root, folders, names in os.walk(directory):
        folders[:] = [folder for folder in folders if folder != ".work"]
        relative_root = Path(root).relative_to(directory)
        found.extend((relative_root / name).as_posix() for name in names)
    return sorted(found)


def digest_files(directory: Path, relative: Iterable[str]) -> dict[str, str]:
    """sha256 of files, read in parallel (hashing releases the interpreter lock), or from a record beside them."""
    names = list(relative)
    known = _recorded(directory, names)
    unknown = [name for name in names if name not in known]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        known.update(zip(unknown, pool.map(lambda name: sha256_file(directory / name), unknown), strict=True))
    return {name: known[name] for name in names}


def _recorded(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Sums of checkpoints' files from their `checkpoint.json`, where they were written down when the files were.

    All ranks took them; reading terabytes again, on one, would keep the whole job waiting. A file that has changed in
    size since, or is newer than the record, is not known.
    """
    known: dict[str, str] = {}
    for mark in names:
        if mark.rsplit("/", 1)[-1] != CHECKPOINT_MARK:
            continue
        try:
            written = (directory / mark).stat().st_mtime_ns
            for path, entry in checkpoint_sums(directory / mark).items():
                status = path.stat()
                if status.st_size == entry.bytes and status.st_mtime_ns <= written:
                    known[path.relative_to(directory).as_posix()] = entry.sha256
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # no record of ours, or a damaged one: the files are read
    return known


def digest_outputs(digests: Mapping[str, str]) -> str:
    """One hash for the content of a directory, volatile files left out."""
    return sha256_json({name: value for name, value in digests.items() if not is_volatile(name)})


class ExternalDigests:
    """Hashes of files outside the run directory, remembered in a JSON file beside the runs.

    Files above 64 MB are identified by size and their first and last megabyte: reading terabytes of
    crawl before the first start would cost more than the stage. A change of size, modification time, change
    time or inode always leads to a new look, at the whole of a large file: what it finds is remembered, so that
    from then on damage in the middle is noticed as well. At the first such look there is nothing to compare
    the middle with, which is said.

    Attributes:
        keep: whether the file is written; a look at what would be done writes nothing.
    """

    def __init__(self, cache: Path, *, keep: bool = False) -> None:
        self._cache = cache
        self.keep = keep
        self._known = _remembered(cache)
        self._changed = False

    def digest(self, paths: Iterable[Path] | Mapping[Path, Path]) -> str:
        """One hash for a set of files and directories (directories stand for all files below).

        Args:
            paths: the files; or file -> the path that enters the hash instead of its own.
        """
        entries: dict[str, str] = {}
        named = paths if isinstance(paths, Mapping) else {path: path for path in paths}
        for path, name_path in named.items():
            if path.is_dir():
                for name in list_files(path):
                    entries[f"{path.name}/{name}"] = self._one(path / name)
            else:
                entries[name_path.name + "@" + str(name_path.parent)] = self._one(path)
        if self._changed and self.keep:
            # It only saves time: beside a run directory of ours may be a folder that is not.
            with contextlib.suppress(OSError):
                write_json_atomically(self._cache, self._known, indent=None, shared=True)
            self._changed = False
        return sha256_json(entries)

    def _one(self, path: Path) -> str:
        try:
            status = path.stat()
        except OSError as error:
            what = "an input is a link that leads nowhere" if path.is_symlink() else "an input cannot be read"
            raise ConfigError(what, where=path, got=error.strerror, expected="a file") from error
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(
                "an input is neither a file nor a folder",
                where=path,
                got=f"file type {stat.filemode(status.st_mode)[0]!r}, as `ls -l` shows it",
                expected="a file that can be read again",
            )
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]
        key = str(path.resolve())
        known = self._known.get(key)
        if known is not None and len(known) == _EARLIER_LENGTH and known[:2] == stamp[:2]:
            known = [*stamp, known[2], None]
        if known is None or known[:4] != stamp:
            try:
                known = [*stamp, *_look(path, status.st_size, known)]
            except OSError as error:
                raise ConfigError(
                    "an input cannot be read",
                    where=path,
                    got=error.strerror,
                    expected="a file that can be read",
                ) from error
        if self._known.get(key) != known:
            self._known[key] = known
            self._changed = True
        return str(known[4])


def _look(path: Path, size: int, before: list[Any] | None) -> tuple[str, str | None]:
    """What identifies a file, and the sha256 of a large one where it was read as a whole.

    Args:
        path: of the file.
        size: in bytes.
        before: its entry until now.
    """
    if size <= _SAMPLED_ABOVE_BYTES:
        return sha256_file(path), None
    sampled = _sampled(path, size)
    if before is None or before[0] != size:
        return sampled, None
    identity, complete = (before[2], None) if len(before) == _EARLIER_LENGTH else before[4:]
    now = sha256_file(path)
    if complete is None:
        if identity == sampled:
            print(
                f"{path} was touched since it was last read: its ends are the same, its middle has no earlier sum",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        return sampled, now
    return (identity if now == complete else sha256_json([sampled, now])), now


def _remembered(cache: Path) -> dict[str, list[Any]]:
    """Path -> size, modification time, inode, change time, hash, sha256 of the whole of a large file or null.

    Empty where the file is missing or damaged.
    """
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    lengths = (_EARLIER_LENGTH, _LENGTH)
    return {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) in lengths}


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(-_SAMPLE_BYTES, os.SEEK_END)
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
