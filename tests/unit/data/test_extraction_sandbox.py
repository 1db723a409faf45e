"""The extraction process keeps no signal handler of the process that started it."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import signal

from tsugiki.data.formatters.extraction import Sandbox


def interrupt(number, frame):
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, interrupt)
with Sandbox(timeout=30, warmup_text="") as sandbox:
    print(sandbox.process_document("page", str.upper))
"""


def test_sandbox_ends_without_the_callers_signal_handler() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "PAGE\n")
    assert "Traceback" not in done.stderr
