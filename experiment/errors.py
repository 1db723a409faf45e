"""Errors a user can act on: what went wrong, where, what was found, what was expected, the fix.

Exit status of the command line: 0 success, 1 the work failed, 2 the request was wrong.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


class TsugikiError(Exception):
    """Base of all errors shown to the user without a traceback.

    ``str(error)`` is the message followed by one line for each part that was given.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        fix: object = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.fix = fix
        parts = [what]
        for label, value in (("where", where), ("got", got), ("expected", expected), ("fix", fix)):
            if value is not None:
                parts.append(f"  {label + ':':<10}{value}")
        super().__init__("\n".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions, and stages
        # run in worker processes whose errors must reach the user unchanged.
        return _rebuild, (type(self), self.what, self.where, self.got, self.expected, self.fix)


def _rebuild(
    cls: type[TsugikiError], what: str, where: object, got: object, expected: object, fix: object
) -> TsugikiError:
    return cls(what, where=where, got=got, expected=expected, fix=fix)


class ConfigError(TsugikiError):
    """The request was wrong: configuration, path or flag."""

    exit_code = 2


class DataError(TsugikiError):
    """The data cannot be used: missing, corrupt, empty after filtering."""


class CheckpointError(TsugikiError):
    """A checkpoint or model directory is missing, partial, corrupt or of another shape."""


class EnvironmentError_(TsugikiError):
    """The machine lacks something: a package, a device, disk space, a Slurm command."""


class Interrupted(TsugikiError):
    """The work saved its state and stopped because it was told to; run again to continue.

    The exit status is EX_TEMPFAIL of sysexits.h: try again later.
    """

    exit_code = 75


class TrainingError(TsugikiError):
    """Training cannot go on: non-finite loss, a dead rank, a hang."""


def os_error(doing: str, where: Path, error: OSError) -> TsugikiError:
    """What the system refused, as an error that tells what to do.

    Args:
        doing: what was being done, e.g. ``stage 'corpus'``.
        where: the place, for an error that names no file.
        error: the refusal.
    """
    place = error.filename or where
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next((folder for folder in (where, *where.parents) if folder.exists()), Path("/"))
        return TsugikiError(
            f"no space left on the device in {doing}",
            where=place,
            got=f"{shutil.disk_usage(existing).free:,} bytes free",
            expected="a disk, and a quota, with room for the result",
            fix="free some space and run the same command again; finished stages are kept",
        )
    return TsugikiError(
        f"{doing} failed on a file",
        where=place,
        got=error.strerror or error,
        expected="a file that can be read, or a folder that can be written to",
    )
