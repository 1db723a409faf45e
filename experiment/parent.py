"""Processes that end when the one that started them does, also when that one is killed."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel end this process when the thread that started it ends (Linux).

    Args:
        parent: id of the parent; if it is another one by now, the parent ended before the kernel was asked.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_worker_with_pool() -> None:
    """Initializer of a pool's workers: end with the process that holds the pool.

    To the kernel the parent of such a worker is the fork server, which lives as long as any worker does, and a
    worker waits for ever on a queue whose writing end it holds itself. What ends with the holder of the pool is
    the pipe that `multiprocessing` keeps for this.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
