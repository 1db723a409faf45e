"""No worker outlives the process that holds the pool, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import os, sys, time
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

sys.path.insert(0, str(Path(__file__).parent))


class Busy(PipelineStep):
    name = "busy"

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def run(self, data, rank=0, world_size=1):
        from tsugiki.data.formatters.extraction import Sandbox

        def hang(text):
            if text:
                self.note("sandbox", rank)
                time.sleep(600)
            return ""

        self.note("worker", rank)
        with Sandbox(timeout=600, warmup_text="") as sandbox:
            sandbox.process_document("page", hang)
        yield from ()

    def note(self, name, rank):
        Path(self.folder, f"{name}-{rank}.new").write_text(str(os.getpid()))
        Path(self.folder, f"{name}-{rank}.new").rename(Path(self.folder, f"{name}-{rank}"))


if __name__ == "__main__":
    from busy import Busy
    from tsugiki.data.common.executor import ProcessExecutor

    folder = Path(__file__).parent
    ProcessExecutor([Busy(str(folder / "pids"))], tasks=2, workers=2, logging_dir=folder / "log", label="x").run()
"""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_workers_and_sandboxes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(PARENT)
    pids = tmp_path / "pids"
    pids.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "busy.py")], env=environment)
    names = [f"{kind}-{rank}" for kind in ("worker", "sandbox") for rank in (0, 1)]
    try:
        deadline = time.monotonic() + 300
        while not all((pids / name).exists() for name in names):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    left = [int((pids / name).read_text()) for name in names]
    deadline = time.monotonic() + 120
    try:
        while still := [process for process in left if alive(process)]:
            assert time.monotonic() < deadline, f"processes {still} outlive their parent"
            time.sleep(0.02)
    finally:
        for process in left:
            if alive(process):
                os.kill(process, signal.SIGKILL)
