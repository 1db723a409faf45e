"""The tokens stage over a job array: one failing task, resumed without the others, same bytes as without Slurm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, wait_until

from tsugiki.data import tokens
from tsugiki.data.tokenise.tokenise_shards import Tokenisation
from tsugiki.experiment.config.strict import dump_yaml
from tsugiki.experiment.run.graph import Graph
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer
from tsugiki.pipeline import load_experiment
from tsugiki.slurm import client
from tsugiki.slurm.arrays import stage_array
from tsugiki.slurm.config import load_cluster
from tsugiki.slurm.submit import submit

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]
ARRAYS = "cluster.arrays={corpus: {tasks: 3}, tokens: {tasks: 3}}"


def write_mistral(
    config: Any, inputs: Mapping[str, Path], output: Path, context: StageContext
) -> StageResult:
    """Stands in for the stages base and tokenizer, which take longer than all the rest."""
    write_hf_tokenizer(mistral_v1_model(), output)
    return StageResult()


def ready_to_encode(run_dir: Path) -> tuple[Any, Graph]:
    """An experiment whose corpus and tokenizer are complete."""
    experiment = load_experiment(
        ROOT / "configs/smoke.yaml", [f"run_dir={run_dir}", "tracking.enabled=false", "corpus.heldout.salt=a"]
    )
    graph = experiment.graph(announce=lambda line: None)
    for name in ("base", "tokenizer"):
        graph.stages[name] = replace(graph.stages[name], function=f"{__name__}:write_mistral")
    graph.run([graph.stages[name] for name in ("corpus", "base", "tokenizer")], experiment.config)
    (run_dir / "slurm/logs").mkdir(parents=True)
    (run_dir / "slurm/config.yaml").write_text(dump_yaml(experiment.config), encoding="utf-8")
    return experiment, graph


def finished(job: int) -> client.JobState:
    def ended() -> client.JobState | None:
        state = client.states([job]).get(job)
        return None if state is None or state.live else state

    return wait_until(ended, 600, f"job {job}")  # type: ignore[no-any-return]


def test_failed_task_of_the_array_is_resumed_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    experiment, graph = ready_to_encode(run_dir)
    stage = graph.stages["tokens"]
    inputs = {name: path.resolve() for name, path in graph.input_paths(stage).items()}
    alone = tmp_path / "alone"
    alone.mkdir()
    tokens.run(experiment.config.tokens, inputs, alone, StageContext(workers=1))

    site, _ = load_cluster("local", [ARRAYS])
    encoding = Tokenisation.open(experiment.config.tokens, inputs, graph.prepare(stage))
    obstacle = encoding.work / f"{encoding.tasks[4].part}.ids.partial"
    obstacle.mkdir(parents=True)  # no file can be written there
    first = stage_array(graph, site, "tokens", "toy", run_dir).submit()
    assert first is not None
    state = finished(first)
    log = "\n".join(path.read_text() for path in sorted((run_dir / "slurm/logs").glob("*.log")))
    assert (state.state, state.reason) == ("FAILED", "3 tasks: 2 COMPLETED, 1 FAILED"), log
    assert "cannot read or write during tokens encode" in log and str(obstacle) in log
    # The second task has the shards 1, 4, 7, …: it stopped at the fourth.
    count = len(encoding.tasks)
    done = {int(path.name) for path in (encoding.work / "logs/completions").iterdir()}
    assert done == set(range(count)) - set(range(4, count, 3))
    written = {path: path.stat().st_mtime_ns for path in encoding.work.rglob("*.ids")}

    obstacle.rmdir()
    second = stage_array(graph, site, "tokens", "toy", run_dir).submit()
    assert second is not None
    assert finished(second).state == "COMPLETED"
    assert len(list((encoding.work / "logs/completions").iterdir())) == count
    assert {path: path.stat().st_mtime_ns for path in written} == written  # nothing was encoded twice

    parts = {path.name: path.stat().st_mtime_ns for path in encoding.work.rglob("*.ids")}
    assert len(parts) <= count
    graph.run([stage], experiment.config)
    expected = {path.name: path.read_bytes() for path in alone.iterdir() if path.is_file()}
    assert expected == {name: (run_dir / "tokens" / name).read_bytes() for name in expected}
    # Submitted once more, the tasks find the stage complete.
    third = stage_array(graph, site, "tokens", "toy", run_dir).submit()
    assert third is not None
    assert finished(third).state == "COMPLETED"
    assert not (run_dir / "tokens.partial").exists()


def test_dry_run_shows_both_arrays(tmp_path: Path) -> None:
    lines: list[str] = []
    submit(
        ROOT / "configs" / "smoke.yaml", "local", [f"run_dir={tmp_path / 'run'}", ARRAYS],
        dry_run=True, announce=lines.append,
    )  # fmt: skip
    text = "\n".join(lines)
    assert "--job-name=smoke-corpus-array" in text and "--job-name=smoke-tokens-array" in text
    assert text.count("#SBATCH --array=0-2") == 2
    assert f"{tmp_path / 'run'}/slurm/tokens-array/executor.pik" in text
    assert "--dependency=afterok:<tokens array>" in text
    assert not [line for line in lines if "REFUSED" in line]
    assert not (tmp_path / "run").exists()
