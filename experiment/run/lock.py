"""One process at a time works in a run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.folders import refuse_unusable


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run directory, which is made; the kernel frees the lock when the process dies.

    Raises:
        ConfigError: another process works in it, or it cannot be made or written to.
    """
    refuse_unusable(run_dir, "the run directory")
    path = run_dir / ".lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the run directory cannot be written to",
            where=run_dir,
            got=error.strerror or error,
            expected="a folder of yours on a file system that is mounted for writing",
            fix="set run_dir to another place, or change its permissions",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ConfigError(
                "another process works in this run directory",
                where=run_dir,
                got=file.read(200).strip() or "unknown process",
                fix="wait for it, stop it, or give this experiment another name",
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
