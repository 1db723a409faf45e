"""An end to the memory that a library may ask for on behalf of a hostile file."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_at_most(extra_bytes: int) -> Iterator[None]:
    """While it holds, this process gets no more address space than it has and ``extra_bytes``.

    What needs more raises MemoryError, or what the library makes of a failed allocation. Nothing that starts threads
    belongs here: each of them reserves tens of megabytes.
    """
    used = _address_space()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [used + extra_bytes, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        if used:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
