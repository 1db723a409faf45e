"""Content hashes of files, cached by size and modification time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tsugiki.experiment.files import sha256_file, sha256_json, write_json_atomically

_SAMPLED_ABOVE_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**20
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
    """sha256 of files, read in parallel (hashing releases the interpreter lock)."""
    names = list(relative)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_file(directory / name), names), strict=True))


def digest_outputs(digests: Mapping[str, str]) -> str:
    """One hash for the content of a directory, volatile files left out."""
    return sha256_json({name: value for name, value in digests.items() if not is_volatile(name)})


class ExternalDigests:
    """Hashes of files outside the run directory, remembered in a JSON file beside the runs.

    Files above 64 MB are identified by size and their first and last megabyte: reading terabytes of
    crawl on every start would cost more than the stage. A change of size or modification time
    always leads to a new look.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        try:
            self._known: dict[str, list[object]] = json.loads(cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
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
        if self._changed:
            write_json_atomically(self._cache, self._known, indent=None, shared=True)
            self._changed = False
        return sha256_json(entries)

    def _one(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        key = str(path.resolve())
        known = self._known.get(key)
        if known is not None and known[:2] == stamp:
            return str(known[2])
        value = _sampled(path, status.st_size) if status.st_size > _SAMPLED_ABOVE_BYTES else sha256_file(path)
        self._known[key] = [*stamp, value]
        self._changed = True
        return value


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(-_SAMPLE_BYTES, os.SEEK_END)
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
