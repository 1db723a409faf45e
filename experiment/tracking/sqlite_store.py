"""The SQLite file that MLflow writes to when there is no server: where it lies, how it is made.

MLflow makes its schema in some forty migrations that SQLite does not undo, several seconds in all. A file that a
kill left in between is refused by MLflow for good, and two processes that make one file at once disturb each
other. So the file is made under a lock, under another name, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tsugiki.experiment.errors import EnvironmentError_

_LOCK_WAIT_SECONDS = 60.0
_SIDE_FILES = ("", "-journal", "-wal", "-shm")
"""The database and what SQLite keeps beside it."""


def sqlite_uri(path: Path) -> str:
    """URI under which MLflow opens exactly this file, whatever characters its path has.

    SQLAlchemy takes what follows a ``?`` for options and decodes ``%20``. MLflow makes the parent folder of a
    ``sqlite:///`` URI without decoding it, which would be a stray folder; it does not for ``sqlite+pysqlite:///``.
    """
    text = str(path)
    if not set(text) & set("%?#"):
        return f"sqlite:///{text}"
    return f"sqlite+pysqlite:///{quote(text)}"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite URI; None for a server, memory, or SQLite's own ``file:`` URIs."""
    if not uri.startswith(("sqlite:", "sqlite+pysqlite:")):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name)


def ensure_store(path: Path) -> None:
    """See to it that the file is there and has MLflow's schema; one that never got it is set aside.

    Args:
        path: of the database; its folder is made.

    Raises:
        EnvironmentError_: another process makes it and does not get done.
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_name(f"{path.name}.lock")):
        if path.exists():
            fault = _fault(path)
            if fault is None:
                return
            kept = _set_aside(path)
            print(
                f"tracking: {path} is broken ({fault}), kept as {kept.name}; a new one is made",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        partial = path.with_name(f"{path.name}.partial")
        for side in _SIDE_FILES:
            partial.with_name(partial.name + side).unlink(missing_ok=True)
        _make(partial)
        partial.rename(path)


def _make(path: Path) -> None:
    """Have MLflow make the schema and its default experiment; every later start finds both."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(sqlite_uri(path), path.parent.joinpath("mlartifacts").as_uri())
    # MLflow keeps one engine a URI for the whole process: closed, it holds no file that is renamed now.
    store.engine.dispose()


def _fault(path: Path) -> str | None:
    """Why a file is no store of MLflow's, or None.

    The default experiment is written when the schema is complete, so a file without any holds nothing. A file of
    an older MLflow has one and is left as it is, also one that cannot be opened for another reason.
    """
    # Not read-only: what a killed process left in the journal has to be rolled back first.
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=20)) as store:
            tables = {
                name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if not {"alembic_version", "experiments", "runs"} <= tables:
                return "its tables were never completed"
            if not store.execute("SELECT 1 FROM alembic_version").fetchone():
                return "its schema has no version"
            if not store.execute("SELECT 1 FROM experiments").fetchone():
                return "its schema was never completed"
    except sqlite3.DatabaseError as error:
        # The primary code is in the low byte of SQLite's extended one.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return str(error)
    return None


def _set_aside(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    # What lies beside goes first: a journal that stays without its database is taken for the next one's.
    for side in reversed(_SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(kept.with_name(kept.name + side))
    return kept


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the kernel frees the lock when its holder dies.

    Raises:
        EnvironmentError_: another process holds it for a minute.
    """
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise EnvironmentError_(
                        "another process makes the MLflow store and does not get done",
                        where=path,
                        fix="look for a stopped process, or set tracking.enabled=false",
                    ) from error
                time.sleep(0.05)
            else:
                break
        yield
    finally:
        os.close(handle)
