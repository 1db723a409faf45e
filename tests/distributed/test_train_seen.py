"""A slow rank is named while training goes on; `train.profile` writes a trace."""

import gzip
import json
import re
from pathlib import Path

import pytest
from training_case import console, lines, train, weights, write_graft, write_tokens

STEPS = 4
SLOW_FORWARD = """
import os, time
from tsugiki.pretrain.training import step
original = step.forward_step
def forward_step(*arguments, **options):
    import torch
    if torch.distributed.get_rank() == RANK:
        time.sleep(0.4)
    return original(*arguments, **options)
step.forward_step = forward_step
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory, steps=STEPS)
    return directory


@pytest.mark.parametrize(
    ("rank", "layout"), [(1, {"data": 2}), (2, {"pipeline": 2, "data": 2})], ids=["dp2", "pp2-dp2"]
)
def test_the_slow_rank_is_named(rank: int, layout: dict[str, int], case: Path, tmp_path: Path) -> None:
    """Of a pipeline, the stage that is slow and not the one that waits for it. Others may be slow, too, by chance."""
    slow = SLOW_FORWARD.replace("RANK", str(rank))
    train(case, tmp_path / "out", fault=slow, parallel=layout, micro_batch=2)
    found = [line for line in lines(tmp_path / "out") if "train/loss" in line]
    assert [line["ranks/slowest"] for line in found] == [rank] * STEPS
    windows = [
        next((slow["windows"] for slow in line.get("stragglers", []) if rank in slow["ranks"]), None)
        for line in found
    ]
    assert windows == [None, 2, 3, 4]
    assert all(line["ranks/own_seconds_max"] > 0.8 for line in found), "two micro batches"
    assert (
        len(re.findall(rf"^slow: ranks? (?:\d, )?{rank}\b.* on ", console(tmp_path / "out"), re.MULTILINE))
        == 3
    )


def test_a_trace_has_the_steps_and_their_parts(case: Path, tmp_path: Path) -> None:
    options = {"parallel": {"pipeline": 2}, "micro_batch": 2}
    train(case, tmp_path / "plain", **options)
    train(case, tmp_path / "out", **options, profile={"steps": [2, 3], "ranks": [1]})
    assert not (tmp_path / "plain" / "profiles").exists()
    assert weights(tmp_path / "plain", STEPS) == weights(tmp_path / "out", STEPS)
    (path,) = (tmp_path / "out" / "profiles").iterdir()
    assert path.name == "steps-2-3-rank-1.json.gz"
    assert f"trace of steps written: {path}" in console(tmp_path / "out")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spans = {name: [event for event in events if event.get("name") == name] for name in ("step 2", "step 3")}
    (second,), (third,) = spans["step 2"], spans["step 3"]
    assert second["ph"] == "X" and second["ts"] + second["dur"] <= third["ts"]
    for step in (second, third):
        inside = [
            event["name"]
            for event in events
            if event.get("ph") == "X" and step["ts"] <= event["ts"] <= step["ts"] + step["dur"]
        ]
        assert inside.count("forward-compute") == inside.count("backward-compute") == 4, "micro batches"
        assert {"forward-recv", "all-grads-sync"} <= set(inside)
    assert not {"step 1", "step 4"} & {event.get("name") for event in events}
