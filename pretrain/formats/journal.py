"""What an interrupted conversion has finished, so that the next attempt goes on from there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.files import write_text_atomically
from tsugiki.experiment.run.folders import KEY_NAME, remove_entry
from tsugiki.experiment.run.graph import WORK_NAME

JOURNAL_NAME = f"{WORK_NAME}/conversion.jsonl"
LAYOUT = "layout"
"""Unit of everything in the files that is not data: sizes, headers, envelopes."""


class Journal:
    """Lines of finished units in the output directory; the first line says what is being converted.

    The journal of anything else (another source, another configuration) is not continued: what is in the
    directory is removed first. It stays, in the folder of unfinished work, until whoever completes the
    result removes that: an interruption while the result is verified or hashed does not start the conversion over.

    Args:
        directory: where the result is written; exists.
        request: everything the result depends on.

    Attributes:
        done: units that an earlier attempt has finished.
        folder: for what the conversion wants to find again after an interruption.
    """

    def __init__(self, directory: Path, request: Mapping[str, Any]) -> None:
        self._path = directory / JOURNAL_NAME
        self.folder = self._path.parent
        self._lock = threading.Lock()
        first = json.dumps({"request": fingerprint(request)})
        self.done: set[str] = set()
        lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.is_file() else [""]
        if lines[0] == first:
            # The last item follows the last newline: empty, or a line cut by the interruption.
            self.done = set(lines[1:-1])
        else:
            empty(directory)
        self.folder.mkdir(exist_ok=True)
        # Whole or as it was: an interruption here must not cost what is done.
        write_text_atomically(self._path, "".join(f"{line}\n" for line in [first, *sorted(self.done)]))
        self._stream = self._path.open("a", encoding="utf-8")

    def record(self, unit: str) -> None:
        """Note a unit as finished; its bytes have been handed to the kernel."""
        with self._lock:
            self._stream.write(f"{unit}\n")
            self._stream.flush()

    def forget(self) -> None:
        """Let the next attempt begin anew: what was written is not to be used."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def empty(directory: Path) -> None:
    """Remove everything in the directory of a result, but for the key by which the stage graph knows it."""
    for entry in directory.iterdir():
        if entry.name != KEY_NAME:
            remove_entry(entry)


def fingerprint(request: Mapping[str, Any]) -> str:
    """sha256 of a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()


def file_states(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and modification time of files: enough to notice that a source was replaced."""
    return {
        str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(set(files))
    }
