"""A job array from an installed wheel, in a folder whose own modules are called as ours were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import wait_until
from installation import CHECKOUT, Installation, install

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def test_corpus_as_an_array_from_a_wheel(tmp_path: Path) -> None:
    installed: Installation = install(tmp_path)
    answer = installed.run(
        "tsugiki", "submit", "smoke", "--cluster", "local", "--until", "corpus",
        "--set", "cluster.arrays={corpus: {tasks: 3}}",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run_dir = installed.work / "runs" / "smoke"

    def logs() -> str:
        return "\n".join(
            f"== {file.name}\n{file.read_text()[-2000:]}" for file in run_dir.glob("slurm/**/*.log")
        )

    wait_until((run_dir / "corpus" / "manifest.json").is_file, 600, logs)
    assert json.loads((run_dir / "corpus" / "manifest.json").read_text())["counts"]
    assert len(list(run_dir.glob("slurm/logs/smoke-corpus-array-*_*.log"))) == 3, logs()
    assert str(CHECKOUT) not in logs() + "".join(file.read_text() for file in run_dir.glob("slurm/*.sbatch"))
