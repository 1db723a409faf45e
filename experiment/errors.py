"""Errors a user can act on: what went wrong, where, what was found, what was expected, the fix.

Exit status of the command line: 0 success, 1 the work failed, 2 the request was wrong.
"""

from __future__ import annotations


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
