"""Byte ranges of files: positioned reads, and copies that stay inside the kernel.

Converting a checkpoint moves rows of matrices from one file to another; unless a type changes,
these are plain byte ranges, which ``copy_file_range`` moves without passing through this process.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.progress import Progress

if TYPE_CHECKING:
    import torch

_STEP_BYTES = 64 << 20
_BUFFER_BYTES = 8 << 20
# What kernels and file systems answer that cannot copy between these two files.
_UNSUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


class FilePool:
    """Open files by path, for positioned access from several threads.

    Args:
        writable: files are created and written instead of read.
    """

    def __init__(self, *, writable: bool = False) -> None:
        self._flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, path: Path) -> int:
        """A descriptor that stays open until :meth:`close`."""
        with self._lock:
            if path not in self._files:
                self._files[path] = os.open(path, self._flags, 0o644)
            return self._files[path]

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``.

        Raises:
            CheckpointError: the file ends before.
        """
        descriptor = self.descriptor(path)
        done = 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise _ends_early(path, offset + done, offset + len(buffer))
            done += count

    def write(self, path: Path, offset: int, data: memoryview | bytes) -> None:
        """Write all of ``data`` at ``offset``."""
        descriptor, view, done = self.descriptor(path), memoryview(data), 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], offset + done)

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


def copy_range(
    source: int, source_offset: int, target: int, target_offset: int, count: int, path: Path
) -> None:
    """Copy bytes between two open files.

    Args:
        source: descriptor to read.
        source_offset: of the first byte.
        target: descriptor to write.
        target_offset: of the first byte.
        count: bytes.
        path: of the source, for the error.

    Raises:
        CheckpointError: the source ends before.
    """
    done = 0
    in_kernel = hasattr(os, "copy_file_range")
    buffer = bytearray()
    while done < count:
        if in_kernel:
            try:
                step = min(_STEP_BYTES, count - done)
                moved = os.copy_file_range(source, target, step, source_offset + done, target_offset + done)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                in_kernel = False
                continue
        else:
            buffer = buffer or bytearray(_BUFFER_BYTES)
            view = memoryview(buffer)[: min(_BUFFER_BYTES, count - done)]
            moved = os.preadv(source, [view], source_offset + done)
            written = 0
            while written < moved:
                written += os.pwrite(target, view[written:moved], target_offset + done + written)
        if moved == 0:
            raise _ends_early(path, source_offset + done, source_offset + count)
        done += moved


def _ends_early(path: Path, got: int, expected: int) -> CheckpointError:
    return CheckpointError(
        "file ends inside a tensor",
        where=path,
        got=f"{got:,} bytes",
        expected=f"at least {expected:,} bytes",
        fix="download or copy the file again",
    )


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, writable, without a copy."""
    import torch

    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)


@contextmanager
def byte_progress(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Progress in GB and GB/s (MB for small models); gives a function that adds bytes, for any thread."""
    size, unit = (1e9, "GB") if total_bytes >= 10e9 else (1e6, "MB")
    lock = threading.Lock()
    with Progress(label, total_bytes / size, unit) as progress:

        def advance(count: int) -> None:
            with lock:
                progress.advance(count / size)

        yield advance
