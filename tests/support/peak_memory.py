"""How far the resident memory of a process rises above what it was, while something runs (Linux)."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _resident(name: str) -> int:
    return (
        int(re.findall(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0])
        * 1024
    )


@contextmanager
def rise() -> Iterator[list[int]]:
    """The list gets the bytes when the block ends."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, result = _resident("VmRSS"), list[int]()
    yield result
    result.append(_resident("VmHWM") - before)
