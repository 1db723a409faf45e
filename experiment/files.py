"""Files that appear complete and on disk, or not at all; JSON; sha256."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

_NOBODY_WRITES_SECONDS = 3600.0
"""Since the last write to a shared file's partial one: small files, on whatever machine."""


@contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete and on disk, or not at all.

    What a kill leaves behind is ``<name>.partial``, which the next writer replaces; of a shared file
    ``<name>.<process>.partial``, which the next writer removes when it is an hour old.

    Args:
        path: of the file; its folder is made.
        shared: several processes may write it at once: each in a file of its own, the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    if shared:
        _remove_left_behind(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_left_behind(path: Path) -> None:
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # another writer may have removed it, and it costs only its bytes
            if left.stat().st_mtime < time.time() - _NOBODY_WRITES_SECONDS:
                left.unlink()


def remove_unfinished(directory: Path, *, below: bool = True) -> None:
    """Remove what kills have left of files that :func:`atomic_file` was writing.

    Only when nothing writes there: the next writer of the same name would replace it, but there may be none.

    Args:
        directory: where to look.
        below: also in its folders.
    """
    for path in directory.glob("**/*.partial" if below else "*.partial"):
        if path.is_file() and not path.is_symlink():
            path.unlink()


def write_text_atomically(path: Path, text: str, *, shared: bool = False) -> None:
    """Write UTF-8 text; see :func:`atomic_file`."""
    with atomic_file(path, shared=shared) as file:
        file.write(text.encode("utf-8"))


def write_json_atomically(
    path: Path,
    value: Any,
    *,
    indent: int | None = 2,
    sort_keys: bool = False,
    errors: Literal["strict", "replace"] = "strict",
    shared: bool = False,
) -> None:
    """Write JSON; see :func:`atomic_file`.

    Args:
        path: of the file.
        value: what to write.
        indent: spaces; with a final newline, as the Hugging Face libraries write. None = one line without it.
        sort_keys: of mappings.
        errors: what becomes of lone surrogates, which UTF-8 does not have: refused, or question marks.
        shared: several processes may write it at once.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)
    with atomic_file(path, shared=shared) as file:
        file.write((text if indent is None else text + "\n").encode("utf-8", errors=errors))


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_bytes())


def sha256_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
