"""A rank of a job of a thousand starts and traces a step, and holds what the plan says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "scale.py"


def rows(*options: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), "--json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ranks", "rank", "stage"),
    [("swallow-70b", 1024, -1, 7), ("seallm-7b-v2.5", 512, 0, 0)],  # the last stage; tied embeddings
)
def test_a_rank_of_many_holds_what_the_plan_says(name: str, ranks: int, rank: int, stage: int) -> None:
    (row,) = rows("--experiments", name, "--ranks", str(ranks), "--rank", str(rank), "--passes", "1")
    assert (row["ranks"], row["stage"], row["passes"]) == (ranks, stage, 1)
    assert row["state_bytes"] == pytest.approx(row["planned_bytes"], rel=0.005)
    assert row["process_bytes"] < 1e9  # nothing of the model's size is really there


@pytest.mark.slow
def test_sample_indices_are_made_once() -> None:
    (row,) = rows("--documents", "200000")
    assert row["samples"] == row["tokens"] // 4096 > 40_000
    # 4 bytes a document and epoch in an order of documents, 8 a sample in positions, 4 in an order of samples
    assert row["cache_bytes"] == pytest.approx(4 * row["documents"] + 12 * row["samples"], rel=0.05)
