"""What the C library does with memory that a training process frees."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_BYTES = 32 << 20
"""The largest threshold that the GNU C library takes, which is where its own adjustment ends, too."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to tensors of 32 MiB, for the next step.

    At the end of a step the GNU C library gives the top of its heap back to the kernel, which hands it out again page
    by page in the next one: in a step of 8 CPU seconds a second of faults and zeros. What is larger is still
    given back, so the peak does not grow. Elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
