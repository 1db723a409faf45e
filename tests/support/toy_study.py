"""An experiment whose trials take a moment, for the tests of studies: the real graph, manifests and locks around four stages.

``python toy_study.py run CONFIG --from STAGE --until STAGE`` is what a study's processes run. Every time a stage works it adds
a line to ``made.log`` beside the study's folder: what was made how often is counted there.

The bits per byte are known: Japanese ``1 + 0.05 (log10(rate) + 3.5)^2 + 0.1 replay``, English ``2 + 0.2 (1 - replay)``, each document a
little off by a fixed amount.
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
from typing import Annotated, Any

from tsugiki.evaluation.scoring.bits_per_byte import Score
from tsugiki.evaluation.scoring.intervals import Resampler
from tsugiki.experiment.config.fingerprint import NotFingerprinted
from tsugiki.experiment.config.load import RawConfig, load_raw, set_value
from tsugiki.experiment.config.strict import StrictModel, dump_yaml
from tsugiki.experiment.config.validate import validate
from tsugiki.experiment.errors import DataError, TsugikiError
from tsugiki.experiment.files import write_text_atomically
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext, StageResult

DOCUMENTS = {"ja": 12, "en": 12}
BASE = {"ja": 2.5, "en": 2.0}


class CorpusSection(StrictModel):
    text: str = "text"
    heldout: str = "h"
    fail: bool = False


class TrainSection(StrictModel):
    rate: float = 1e-3
    replay: float = 0.5
    seconds: float = 0.0
    log_every: Annotated[int, NotFingerprinted] = 1
    fail_once: bool = False
    fail: bool = False
    wait_for: str | None = None


class EvaluateSection(StrictModel):
    text: str = "same"


class ToyConfig(StrictModel):
    name: str
    run_dir: str | None = None
    workers: int = 1
    tracking: dict[str, str] = {}
    seed: int = 1
    corpus: CorpusSection = CorpusSection()
    tokens: float = 1e6
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()


class TokensSection(StrictModel):
    tokens: float


@dataclass(frozen=True)
class ToyExperiment:
    config: ToyConfig
    raw: RawConfig

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir or f"runs/{self.config.name}")

    def graph(self, announce: Callable[[str], None] = print) -> Graph:
        config = self.config
        stages = [
            Stage("corpus", config.corpus, (), "toy_study:run_corpus"),
            Stage("tokens", TokensSection(tokens=config.tokens), ("corpus",), "toy_study:run_tokens"),
            Stage(
                "train", config.train, ("tokens",), "toy_study:run_train", keep_partial=True, precious=True
            ),
            Stage("evaluate", config.evaluate, ("train", "corpus"), "toy_study:run_evaluate"),
        ]
        return Graph(stages, self.run_dir, StageContext(seed=config.seed, workers=1), None, announce)

    def save_config(self) -> None:
        write_text_atomically(self.run_dir / "config.yaml", dump_yaml(self.config), shared=True)


def load(
    path: Path, overrides: Sequence[str] = (), *, values: Mapping[str, Any] | None = None
) -> ToyExperiment:
    raw = load_raw(path, overrides)
    for name, value in (values or {}).items():
        set_value(raw, name, value, f"{name} = {value!r}")
    return ToyExperiment(validate(ToyConfig, raw), raw)


def made(study: Path) -> list[tuple[str, str]]:
    """(stage, trial) each time that a stage worked to its end."""
    return [tuple(line.split()) for line in (study.parent / "made.log").read_text().splitlines()]  # type: ignore[misc]


def _record(output_dir: Path, stage: str) -> None:
    with (output_dir.parents[2] / "made.log").open("a") as file:
        file.write(f"{stage} {output_dir.parent.name}\n")


def run_corpus(
    config: CorpusSection, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    if config.fail:
        raise DataError("no documents", where="toy")
    (output_dir / "deep").mkdir()
    (output_dir / "deep" / "text").write_text(config.text)
    _record(output_dir, "corpus")
    return StageResult()


def run_tokens(
    config: TokensSection, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    (output_dir / "ids").write_text(f"{config.tokens} of {(inputs['corpus'] / 'deep' / 'text').read_text()}")
    _record(output_dir, "tokens")
    return StageResult()


def run_train(
    config: TrainSection, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    if config.fail:
        raise DataError("diverged", where=f"rate {config.rate}")
    if config.fail_once and not (output_dir / "tried").exists():
        (output_dir / "tried").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.wait_for is not None:
        (output_dir.parents[1] / f"{output_dir.parent.name}.waits").touch()
        while not Path(config.wait_for).exists():
            time.sleep(0.02)
    time.sleep(config.seconds)
    (output_dir / "weights").write_text(json.dumps({"rate": config.rate, "replay": config.replay}))
    _record(output_dir, "train")
    return StageResult()


def known(rate: float, replay: float) -> dict[str, float]:
    """Bits per byte by language."""
    return {"ja": 1 + 0.05 * (math.log10(rate) + 3.5) ** 2 + 0.1 * replay, "en": 2 + 0.2 * (1 - replay)}


def run_evaluate(
    config: EvaluateSection, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    write_evaluation(output_dir, known(**json.loads((inputs["train"] / "weights").read_text())), config.text)
    _record(output_dir, "evaluate")
    return StageResult()


def write_evaluation(folder: Path, rates: Mapping[str, float], text: str = "same") -> None:
    """``results.json`` and ``documents.jsonl`` as the stage evaluate writes them, of the least that studies read."""
    scores: dict[str, dict[str, list[Score]]] = {"base": {}, "result": {}}
    lines = []
    for language, count in DOCUMENTS.items():
        for model, rate in (("base", BASE[language]), ("result", rates[language])):
            # Off by the same amount in all trials and both models: documents are easy or hard.
            off = [0.1 * ((7 * number) % count - (count - 1) / 2) / count for number in range(count)]
            scores[model][language] = [Score((rate + by) * math.log(2) * 1000, 100, 1000, 0) for by in off]
        for number in range(count):
            record: dict[str, Any] = {"language": language, "id": str(number), "bytes": 1000}
            for model in scores:
                item = scores[model][language][number]
                record[model] = {"nats": item.nats, "tokens": item.tokens}
            lines.append(json.dumps(record))
    results: dict[str, Any] = {
        "protocol": {"window_tokens": 8, "stride_tokens": 4, "dtype": "float32"},
        "documents": dict(DOCUMENTS),
        "bytes": {language: 1000 * count for language, count in DOCUMENTS.items()},
        "text_sha256": {language: f"{text} {language}" for language in DOCUMENTS},
        "benchmarks": {"base": {}, "result": {}},
        "difference": {},
    }
    for model, of_model in scores.items():
        results[model] = {
            "bits_per_byte": {
                language: sum(item.nats for item in items) / math.log(2) / sum(item.bytes for item in items)
                for language, items in of_model.items()
            },
            "bits_per_byte_interval": {
                language: Resampler(len(items), 100, 0.95, 1, language).bits_per_byte(items)
                for language, items in of_model.items()
            },
        }
    for language in DOCUMENTS:
        before, after = (results[model]["bits_per_byte"][language] for model in ("base", "result"))
        results["difference"][language] = {"bits_per_byte": after - before, "interval": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")


def main(arguments: list[str]) -> int:
    experiment = load(Path(arguments[1]))
    graph = experiment.graph()
    start, until = (arguments[arguments.index(flag) + 1] for flag in ("--from", "--until"))
    try:
        graph.run(graph.select(start, until), experiment.config)
    except TsugikiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
