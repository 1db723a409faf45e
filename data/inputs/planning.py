"""Input files of the sources and their grouping into shards, the unit of work and of resumption.

The plan depends on the files and the configuration only, never on the number of workers: that is
what makes the corpus the same however it was computed.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tsugiki.data.common.shard import InputFile, Shard, name_hash
from tsugiki.data.config import CorpusConfig, SourceConfig
from tsugiki.data.inputs import debian
from tsugiki.data.readers.base import reader_of
from tsugiki.experiment.artefacts.shards import TruncatedInput
from tsugiki.experiment.config.fingerprint import fingerprint
from tsugiki.experiment.config.own_code import source_files
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.registry import load_object
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.files import sha256_file

_MAGIC = frozenset("*?[")
WORK_FORMAT = 3
"""Raised when the intermediate files change: half-done work with other ones is done again."""
STREAMED_PARTS = 64
"""A source is divided into no more streamed parts than about this many."""


def plan_shards(config: CorpusConfig) -> list[Shard]:
    """Find the files of every source and group them.

    Raises:
        ConfigError: a pattern matches nothing.
        EnvironmentError_: a Debian package cannot be had.
    """
    shards: list[Shard] = []
    for source in config.sources:
        files = find_files(source)
        limit: int | None = None
        if source.maximum_documents is not None:
            if reader_of(source).has_one_document_per_file(source):
                files = _chosen(files, source.maximum_documents)
            else:
                limit = hash_limit(source, files, source.maximum_documents)
        files = divided(source, files, config.shard_input_bytes)
        groups = _grouped(files, config.shard_input_bytes, config.shard_input_files)
        for number, group in enumerate(groups):
            shards.append(Shard(len(shards), source.name, number, tuple(group), limit))
    return shards


def plan_fingerprint(config: CorpusConfig, profiles: Mapping[str, BaseModel], shards: Sequence[Shard]) -> str:
    """sha256 over configuration, profiles and input files: partial work of another plan is not continued."""
    listing: dict[str, Any] = {
        "format": WORK_FORMAT,
        "profiles": {name: profile.model_dump(mode="json") for name, profile in profiles.items()},
        "shards": [asdict(shard) for shard in shards],
    }
    if code := own_code(config):
        listing["code"] = {path.name: sha256_file(path) for path in code}
    return hashlib.sha256((fingerprint(config) + json.dumps(listing, sort_keys=True)).encode()).hexdigest()


def own_code(config: CorpusConfig) -> list[Path]:
    """Source files of what is the user's own: their content decides what the stage makes.

    Raises:
        ConfigError: it cannot be imported.
    """
    addresses = [
        (source.format, f"corpus.sources.{source.name}.format")
        for source in config.sources
        if ":" in source.format
    ]
    addresses += [(step.use, f"corpus.steps.{number}.use") for number, step in enumerate(config.steps)]
    modules: set[str] = set()
    for address, where in addresses:
        # The module that is named, and the one it may have the class from.
        modules |= {address.partition(":")[0], load_object(address, where).__module__}
    return source_files(modules)


def find_files(source: SourceConfig) -> list[InputFile]:
    """Files of a source in the order of their names.

    Raises:
        ConfigError: a path or pattern matches no file.
        EnvironmentError_: a Debian package cannot be had.
        DataError: a URL cannot be listed.
    """
    found: dict[str, InputFile] = {}
    for path in source.paths:
        special: list[str] = []
        if "://" in path:
            files = list(_remote_files(path, special))
        elif path.startswith(debian.SCHEME):
            package, inside = debian.split_path(path)
            files = list(_local_files(debian.unpacked(package), inside, special))
        else:
            files = list(_local_files(Path(), str(expand_path(path)), special))
        if not files:
            raise ConfigError(
                f"source '{source.name}' has no input files",
                where=f"corpus.sources.{source.name}.path",
                got=path,
                expected="a file, a folder or a glob that matches files",
                fix=f"relative paths start at {Path.cwd()}" if not Path(path).is_absolute() else None,
            )
        found.update((file.path, file) for file in files)
        if special:
            print(
                f"source '{source.name}' passes over {len(special):,} of {path} that is no regular file, "
                f"the first {special[0]}",
                file=sys.stderr,
            )
    return sorted(_named_apart(list(found.values())), key=lambda file: (file.name, file.path))


def _named_apart(files: list[InputFile]) -> list[InputFile]:
    """The files, with as many of their folders before names that several have as tell them apart."""
    clashing = {name for name, count in Counter(file.name for file in files).items() if count > 1}
    if not clashing:
        return files
    steps = 0
    names = [file.name for file in files]
    while len(set(names)) < len(names):
        steps += 1
        names = [_longer(file, steps) if file.name in clashing else file.name for file in files]
    return [replace(file, name=name) for file, name in zip(files, names, strict=True)]


def _longer(file: InputFile, steps: int) -> str:
    """The name with that many more of the path's parts before it."""
    parts = file.path.split("/")
    count = len(file.name.split("/"))
    folders = "/".join(parts[max(0, len(parts) - count - steps) : len(parts) - count])
    return f"{os.fsencode(folders).decode(errors='backslashreplace')}/{file.name}"


def _chosen(files: list[InputFile], count: int) -> list[InputFile]:
    kept = set(heapq.nsmallest(count, files, key=lambda file: (name_hash(file.name), file.name)))
    return [file for file in files if file in kept]


def hash_limit(source: SourceConfig, files: list[InputFile], count: int) -> int | None:
    """Largest hash among the ``count`` records of the smallest hash; None when there are no more.

    Reads the source once more, without extraction: what is chosen then does not depend on order.
    """
    smallest: list[int] = []  # a heap of the smallest hashes, negated: its root is the largest
    total = 0
    reader = reader_of(source)
    for file in files:
        try:
            for number in reader.record_numbers(source, file):
                total += 1
                value = -name_hash(file.name, str(number))
                if len(smallest) < count:
                    heapq.heappush(smallest, value)
                elif value > smallest[0]:
                    heapq.heapreplace(smallest, value)
        except (TruncatedInput, OSError):
            continue  # counted when the file is read
    return -smallest[0] if total > count else None


def divided(source: SourceConfig, files: Sequence[InputFile], maximum_bytes: int) -> list[InputFile]:
    """The files, those above ``maximum_bytes`` in parts of about that size, as their reader divides them."""
    reader = reader_of(source)
    streamed = max(1, STREAMED_PARTS // max(1, len(files)))
    parts: list[InputFile] = []
    for file in files:
        count = -(-file.size_bytes // maximum_bytes)
        parts += [file] if count < 2 else reader.divide(source, file, count, streamed)
    return parts


def _grouped(files: Sequence[InputFile], maximum_bytes: int, maximum_files: int) -> Iterator[list[InputFile]]:
    group: list[InputFile] = []
    size = 0
    for file in files:
        if group and (size + file.size_bytes > maximum_bytes or len(group) >= maximum_files):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size_bytes
    if group:
        yield group


def _local_files(base: Path, pattern: str, special: list[str]) -> Iterator[InputFile]:
    """Regular files; what else a folder or pattern has besides folders is added to `special`."""
    parts = Path(pattern).parts
    fixed = next((place for place, part in enumerate(parts) if set(part) & _MAGIC), len(parts))
    root = base.joinpath(*parts[:fixed])
    matches: Iterable[Path]
    chosen = fixed < len(parts) or root.is_dir()
    if fixed < len(parts):
        matches = root.glob(str(Path(*parts[fixed:])))
    elif root.is_dir():
        matches = root.rglob("*")
    else:
        root, matches = root.parent, [root]
    for match in matches:
        if not chosen and match.exists() and not match.is_file():
            raise ConfigError(
                "an input that is no regular file",
                where=str(match),
                got=_kind_of(match),
                expected="a file, a folder or a glob: a pipe has no size and may never end",
                fix="write what it gives into a file",
            )
        if match.is_file():
            status = match.stat()
            # A name that is not UTF-8 shows its bytes as \xff.
            name = os.fsencode(match.relative_to(root).as_posix()).decode(errors="backslashreplace")
            yield InputFile(str(match), name, status.st_size, status.st_mtime_ns)
        elif match.exists() and not match.is_dir():
            special.append(str(match))


def _kind_of(path: Path) -> str:
    mode = path.stat().st_mode
    kinds = {
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "something else")


def _remote_files(url: str, special: list[str]) -> Iterator[InputFile]:
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url)
        listing = (
            filesystem.glob(path, detail=True) if set(path) & _MAGIC else filesystem.find(path, detail=True)
        )
    except (OSError, ValueError, ImportError) as error:
        raise DataError("cannot list the files of a URL", where=url, got=error) from error
    root = path.split("*", 1)[0].rsplit("/", 1)[0]
    for name in sorted(listing):
        entry = listing[name]
        if entry.get("type") == "directory":
            continue
        if entry.get("type") == "other":  # a pipe, socket or device
            special.append(name)
            continue
        relative = name.removeprefix(root).lstrip("/")
        address = filesystem.unstrip_protocol(name)
        yield InputFile(address, relative or name, int(entry.get("size") or 0), _version(filesystem, name))


def _version(filesystem: Any, name: str) -> int:
    """What a store knows a file's content by, as a number; 0 where it does not say."""
    try:
        return name_hash(str(filesystem.ukey(name))) >> 1
    except (NotImplementedError, OSError, KeyError):
        return 0
