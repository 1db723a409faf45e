"""Commands of the user's own that are told how a run ended: a mail, a message, the next thing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import Interrupted

_LONGEST_SECONDS = 30.0
_STOPS = (130, Interrupted.exit_code)
Event = Literal["done", "failed", "preempted"]


class NotifyConfig(StrictModel):
    """Shell commands, told what happened by `$TSUGIKI_EVENT`, `_NAME`, `_RUN_DIR` and `_MESSAGE`."""

    done: str | None = None
    """When the last stage of the experiment is complete."""
    failed: str | None = None
    """When a stage failed."""
    preempted: str | None = None
    """When the run was asked to stop (Ctrl-C, a time limit, a preemption); it can go on."""


def notify(config: NotifyConfig, event: Event, name: str, run_dir: Path, message: str = "") -> None:
    """Run the command of an event; one that fails or takes over 30 s is said and never ends the work.

    Args:
        config: the commands.
        event: what happened.
        name: of the experiment.
        run_dir: its run directory.
        message: what failed.
    """
    command = getattr(config, event)
    if command is None:
        return
    told = {"EVENT": event, "NAME": name, "RUN_DIR": str(run_dir.resolve()), "MESSAGE": message}
    environment = {**os.environ, **{f"TSUGIKI_{key}": value for key, value in told.items()}}
    try:
        subprocess.run(
            ["sh", "-c", command],
            env=environment,
            timeout=_LONGEST_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"notify.{event} failed, the work does not: {error}", file=sys.stderr, flush=True)


@contextmanager
def notified(config: NotifyConfig, name: str, run_dir: Path, *, to_the_end: bool) -> Iterator[None]:
    """Around a run: tell how it ended.

    Args:
        config: the commands.
        name: of the experiment.
        run_dir: its run directory.
        to_the_end: whether the run ends with the last stage of the experiment.
    """
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0:  # rank 0 speaks
        yield
        return
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        notify(config, "preempted", name, run_dir)
        raise
    except SystemExit as ended:
        notify(
            config,
            "preempted" if ended.code in _STOPS else "failed",
            name,
            run_dir,
            f"exit status {ended.code}",
        )
        raise
    except Exception as error:
        notify(config, "failed", name, run_dir, str(error))
        raise
    if to_the_end:
        notify(config, "done", name, run_dir)
