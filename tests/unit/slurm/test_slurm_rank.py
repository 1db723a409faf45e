"""slurm/rank.sh under signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tsugiki.slurm.scripts import SCRIPTS

COMMAND = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    time.sleep(0.2)  # until a tee that dies of the signal is dead
    print("saved", file=sys.stderr, flush=True)
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
Path(sys.argv[1]).touch()
time.sleep(600)
"""


def start(folder: Path, *command: str, rank: int = 0) -> subprocess.Popen[str]:
    """A rank in a process group of its own, which Slurm signals as a whole."""
    (folder / "slurm/logs").mkdir(parents=True, exist_ok=True)
    settings = {
        "TSUGIKI_RUN_DIR": str(folder), "TSUGIKI_STAGE": "train", "TSUGIKI_TOKEN": "9.1", "TSUGIKI_CHAIN": "c1",
        "SLURM_PROCID": str(rank), "SLURMD_NODENAME": "n1",
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", f"{SCRIPTS}/rank.sh", *command], env={**os.environ, **settings},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def failed(folder: Path, rank: int = 0) -> list[str]:
    return (folder / f"slurm/logs/train-9.1-rank{rank:05d}.failed").read_text().split()


def test_what_ranks_say_after_a_signal_is_kept(tmp_path: Path) -> None:
    """Slurm signals every process of a rank: `tee` died of it, and the rank of writing to it."""
    ready = [tmp_path / f"ready-{rank}" for rank in range(2)]
    ranks = [start(tmp_path, "python3", "-c", COMMAND, str(ready[rank]), rank=rank) for rank in range(2)]
    while not all(path.exists() for path in ready):
        assert all(process.poll() is None for process in ranks)
        time.sleep(0.01)
    for process in ranks:
        os.killpg(process.pid, signal.SIGUSR1)
    for rank, process in enumerate(ranks):
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 75
        assert (tmp_path / f"slurm/logs/train-9.1-rank{rank:05d}.err").read_text() == "saved\n"
        assert said == ("saved\n" if rank == 0 else "")
        assert failed(tmp_path, rank)[-3:] == [str(rank), "n1", "75"]
