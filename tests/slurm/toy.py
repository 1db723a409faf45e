"""A stand-in experiment for the test Slurm: the real stage graph, manifests and locks around stages that
sleep, fail and get killed on demand. `python toy.py run CONFIG --from STAGE --until STAGE` is what jobs run.

The training keeps a number x as its whole state: x <- 0.9 x + 0.1 sin(step). Whatever happens to the job,
the final x must be that of an uninterrupted loop.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.config.load import RawConfig, load_raw
from tsugiki.experiment.config.strict import StrictModel, dump_yaml
from tsugiki.experiment.config.validate import validate
from tsugiki.experiment.errors import DataError, TsugikiError
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext, StageResult

INTERRUPTED = 75


class CorpusSection(StrictModel):
    fail: bool = False


class Fault(StrictModel):
    """What goes wrong: `kind` happens to `rank` when it reaches `step`, at most `times` times."""

    kind: str
    rank: int = 0
    step: int = 0
    times: int = 1


class TrainSection(StrictModel):
    steps: int = 20
    step_seconds: float = 0.05
    save_every: int = 5
    fault: Fault | None = None


class ToyConfig(StrictModel):
    name: str
    run_dir: str
    corpus: CorpusSection = CorpusSection()
    train: TrainSection = TrainSection()


@dataclass(frozen=True)
class ToyExperiment:
    config: ToyConfig
    raw: RawConfig

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    def graph(self, announce: Callable[[str], None] = print) -> Graph:
        stages = [
            Stage("corpus", self.config.corpus, (), "toy:run_corpus"),
            Stage("train", self.config.train, ("corpus",), "toy:run_train", keep_partial=True),
            Stage("export", None, ("train",), "toy:run_export"),
        ]
        return Graph(stages, self.run_dir, StageContext(), None, announce)

    def save_config(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "config.yaml").write_text(dump_yaml(self.config), encoding="utf-8")


def load(path: Path, overrides: Sequence[str] = ()) -> ToyExperiment:
    raw = load_raw(path, overrides)
    return ToyExperiment(validate(ToyConfig, raw), raw)


def expected_state(steps: int) -> float:
    x = 1.0
    for step in range(1, steps + 1):
        x = 0.9 * x + 0.1 * math.sin(step)
    return x


def run_corpus(
    config: CorpusSection, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    if config.fail:
        raise DataError("no documents", where="toy", fix="give it some")
    (output_dir / "text").write_text("text\n")
    return StageResult()


def run_train(
    config: TrainSection, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    stop: list[int] = []
    # USR1 asks to save and stop. TERM comes when another rank died, and then nothing can be saved.
    signal.signal(signal.SIGUSR1, lambda number, frame: stop.append(number))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    checkpoints = output_dir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    x, first = 1.0, 1
    if (checkpoints / "latest.json").is_file():
        saved = json.loads((checkpoints / "latest.json").read_text())
        x, first = saved["x"], saved["iteration"] + 1
    with (output_dir / f"ranks-{rank}.log").open("a") as log:
        log.write(f"{os.uname().nodename} {os.getpid()} {world} {first}\n")
    fault = config.fault if _to_come(config.fault, output_dir) else None
    _wait_for_all(rank, world, output_dir)
    for step in range(first, config.steps + 1):
        time.sleep(config.step_seconds)
        x = 0.9 * x + 0.1 * math.sin(step)
        _maybe_fail(fault, rank, step, output_dir)
        if rank == 0 and (step % config.save_every == 0 or stop or step == config.steps):
            _save(checkpoints / "latest.json", {"iteration": step, "x": x})
            record = {"step": step, "train/loss": x, "throughput/tokens_per_second": 1.0}
            with (output_dir / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps(record) + "\n")
        if stop:
            sys.exit(INTERRUPTED)
    return StageResult(metrics={"train/loss": x})


def run_export(
    config: Any, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    state = json.loads((inputs["train"] / "checkpoints" / "latest.json").read_text())
    (output_dir / "result.json").write_text(json.dumps(state))
    return StageResult()


def _save(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def _to_come(fault: Fault | None, output_dir: Path) -> bool:
    happened = output_dir / "faults"
    return fault is not None and (not happened.is_file() or len(happened.read_text().split()) < fault.times)


def _wait_for_all(rank: int, world: int, output_dir: Path) -> None:
    """The first collective of this start."""
    start = os.environ["TSUGIKI_TOKEN"]
    (output_dir / f"started-{start}-{rank}").touch()
    while len(list(output_dir.glob(f"started-{start}-*"))) < world:
        time.sleep(0.05)


def _maybe_fail(fault: Fault | None, rank: int, step: int, output_dir: Path) -> None:
    if fault is None or fault.step != step:
        return
    if fault.rank != rank:
        time.sleep(600)  # the others wait in a collective for the one that failed
        return
    with (output_dir / "faults").open("a") as file:
        file.write(f"{step}\n")
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind == "hang":
        time.sleep(600)
    if fault.kind == "error":
        raise DataError("bad batch", where=f"step {step}")


def main(arguments: list[str]) -> int:
    start = arguments[arguments.index("--from") + 1]
    until = arguments[arguments.index("--until") + 1]
    experiment = load(Path(arguments[1]))
    graph = experiment.graph()
    try:
        graph.run(graph.select(start, until), experiment.config)
    except TsugikiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
