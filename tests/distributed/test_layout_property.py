"""`plan` accepts exactly the layouts that can be built: its verdict against Megatron's, over random specs and layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import ParallelConfig, TrainConfig
from tsugiki.pretrain.planning.divisions import Problem
from tsugiki.pretrain.planning.problems import layout_problems

BUILDER = Path(__file__).parents[1] / "support" / "layout_builder.py"


@pytest.fixture(scope="module")
def megatron() -> Iterator[Callable[[dict[str, Any]], str]]:
    """Asks Megatron: empty when it builds the layout, else what it says."""
    process = subprocess.Popen(
        [sys.executable, BUILDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None

    def ask(request: dict[str, Any]) -> str:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("verdict "):
                return str(json.loads(line.removeprefix("verdict ")))
        raise AssertionError(process.stderr.read()[-3000:])

    yield ask
    process.stdin.close()
    process.wait(timeout=300)
    process.stdout.close()
    process.stderr.close()


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A small model and a division of its training over up to 64 processes, mostly fitting."""
    kv_heads = draw(st.sampled_from([1, 2, 3, 4]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3]))
    tensor = draw(st.sampled_from([1, 2, 3, 4]))
    pipeline = draw(st.sampled_from([1, 2, 3, 4]))
    micro_batch, data = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    return {
        "spec": {
            "family": draw(st.sampled_from(["llama", "gemma", "phi3"])),
            "layers": draw(st.sampled_from([2, 3, 4, 6, 8])),
            "hidden_size": draw(st.sampled_from([16, 24, 30])),
            "ffn_size": draw(st.sampled_from([12, 24, 32, 33])),
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": draw(st.sampled_from([2, 4])),
            "vocabulary_size": draw(st.sampled_from([97, 150, 400])),
            "max_positions": 96,
            "tied_embeddings": draw(st.booleans()),
            "qkv_bias": draw(st.booleans()),
        },
        "parallel": {
            "tensor": tensor,
            "pipeline": pipeline,
            "virtual_pipeline": draw(st.sampled_from([None, None, 2])) if pipeline > 1 else None,
            "context": draw(st.sampled_from([1, 1, 2])),
            "sequence": draw(st.booleans()) if tensor > 1 else False,
        },
        "micro_batch": micro_batch,
        # Whole groups of micro batches, whose number only the running schedule checks.
        "global_batch": draw(
            st.sampled_from([micro_batch * data * pipeline, micro_batch * data * pipeline, 7])
        ),
        "data": data,
    }


def ours(problem: Problem, train: TrainConfig, spec: ModelSpec) -> bool:
    """Whether we refuse what Megatron may build: three cases, of which only the last would fail when it runs."""
    # Ranks that share key/value heads: the checkpoint's rows of a group could not be divided over them.
    shared = "key/value heads" in problem.what and train.parallel.tensor % spec.kv_heads == 0
    # A rank whose rows of the vocabulary are padding and nothing else.
    empty = "too small to divide" in problem.what
    # Groups of micro batches: only the running schedule looks.
    return shared or empty or problem.where == "train.parallel.virtual_pipeline"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_the_plan_accepts_what_megatron_builds(
    megatron: Callable[[dict[str, Any]], str], request: Any
) -> None:
    spec = ModelSpec(**request["spec"])
    train = TrainConfig(sequence_length=48, global_batch=6, precision="fp32").model_copy(
        update={
            "parallel": ParallelConfig(**request["parallel"]),
            "micro_batch": request["micro_batch"],
            "global_batch": request["global_batch"],
        }
    )
    problems = layout_problems(train, spec, request["data"])
    said = megatron(request)
    if not problems:
        assert said == ""
    elif not all(ours(problem, train, spec) for problem in problems):
        assert said != "", f"Megatron builds what the plan refuses: {problems}"
