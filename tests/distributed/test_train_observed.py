"""What training reports: figures against hand calculations and transformers, MLflow's store read back."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient
from training_case import (
    BASE_ROWS,
    GLOBAL_BATCH,
    SEQUENCE,
    STEPS,
    VOCABULARY,
    console,
    curve,
    forked,
    hf_model,
    lines,
    server,
    settings,
    train,
    write_graft,
    write_tokens,
)
from training_reference import batch_of, samples_in_order

from tsugiki.experiment.errors import Interrupted, TrainingError
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.trackers.mlflow import default_uri
from tsugiki.pretrain.config import TrainConfig


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.fixture(scope="module")
def observed(case: Path) -> Path:
    train(case, case / "observed", peak_tflops=0.5, log_interval_steps=5)
    return case / "observed"


def test_throughput_by_hand(observed: Path) -> None:
    """Hidden 32, 4 heads and 2 key/value heads of width 8, feed-forward 64, 4 layers, 101 rows, 32 tokens."""
    found = [line for line in lines(observed) if "train/loss" in line]
    assert [line["step"] for line in found] == [5, 10, 15, 20]
    weights = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64) + 101 * 32
    full = 6 * weights + 12 * 4 * 32 * SEQUENCE
    causal = (
        6 * weights + 12 * 4 * 32 * (SEQUENCE + 1) / 2
    )  # a token sees 1 to SEQUENCE positions, itself included
    for line in found:
        rate = line["throughput/tokens_per_second"]
        assert rate == pytest.approx(GLOBAL_BATCH * SEQUENCE / line["throughput/step_seconds"])
        assert line["throughput/tflops_full_attention"] == pytest.approx(rate * full / 1e12)
        assert line["throughput/tflops_causal_attention"] == pytest.approx(rate * causal / 1e12)
        assert line["throughput/mfu_full_attention"] == pytest.approx(rate * full / 0.5e12)
        assert line["throughput/mfu_causal_attention"] == pytest.approx(rate * causal / 0.5e12)
        assert 50e6 < line["memory/resident_bytes"] < 4e9
        assert line["consumed_tokens"] == line["step"] * GLOBAL_BATCH * SEQUENCE
    times = [line["seconds"] for line in found]
    stepping = sum(line["throughput/step_seconds"] * 5 for line in found[1:])
    assert stepping <= times[-1] - times[0] + 0.01, "no more time than passed"
    share = f"MFU {found[-1]['throughput/mfu_full_attention']:.1%}"
    assert f"tok/s  {share}  0:00 left" in console(observed)
    loss = found[-1]["train/loss"]
    assert found[-1]["train/bits_per_byte"] == pytest.approx(loss / 3 / 0.6931472), "3 bytes a token"


def test_no_peak_no_mfu_and_a_measured_one(case: Path, tmp_path: Path) -> None:
    train(case, tmp_path / "unknown", parallel={"data": 2})
    assert not any("mfu" in key for line in lines(tmp_path / "unknown") for key in line)
    line = next(line for line in lines(tmp_path / "unknown") if "train/loss" in line)
    for name in ("tokens_per_second", "tflops"):
        whole = (
            "throughput/tokens_per_second"
            if name == "tokens_per_second"
            else "throughput/tflops_full_attention"
        )
        each = (
            "throughput/tokens_per_second_per_process"
            if name == "tokens_per_second"
            else "throughput/tflops_per_process_full_attention"
        )
        assert line[each] == pytest.approx(line[whole] / 2)
    train(case, tmp_path / "measured", peak_tflops="measured")
    shares = curve(tmp_path / "measured", "throughput/mfu_full_attention")
    assert len(shares) == STEPS and all(0 < share < 1 for share in shares)


def test_waiting_for_data_is_seen(case: Path, tmp_path: Path) -> None:
    """Every batch takes 0.8 s to read, by far longer than a step on it; a quick reader is not waited for."""
    fault = (
        "import time\nfrom tsugiki.pretrain.training.samples.reader import BatchReader\noriginal = BatchReader._read\n"
        "def read(self, step):\n    time.sleep(0.8)\n    return original(self, step)\nBatchReader._read = read\n"
    )
    write_tokens(tmp_path, steps=4)
    write_graft(tmp_path)
    train(tmp_path, tmp_path / "slow", fault=fault)
    waits = curve(tmp_path / "slow", "throughput/data_wait_seconds")
    steps = curve(tmp_path / "slow", "throughput/step_seconds")
    assert len(waits) == 4
    assert waits[0] >= 0.8, "nothing was read ahead"
    assert all(wait < step for wait, step in zip(waits, steps, strict=True))
    assert max(waits[1:]) > 0.4
    train(tmp_path, tmp_path / "quick")
    assert max(curve(tmp_path / "quick", "throughput/data_wait_seconds")) < 0.2


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"parallel": {"tensor": 2, "pipeline": 2, "sequence": True}},
        {"parallel": {"tensor": 2, "data": 2}},
        {"parallel": {"data": 2}, "optimizer": {"learning_rate": 3e-3, "distributed": False}},
        {"parallel": {"context": 2}},
    ],
    ids=["alone", "tp2-pp2", "tp2-dp2", "dp2-plain", "cp2"],
)
@pytest.mark.parametrize("tied", [False, True])
def test_norms_of_old_and_new_rows(case: Path, tmp_path: Path, change: dict[str, object], tied: bool) -> None:
    """At the first step: of the initial weights, and of the gradient that transformers gives."""
    directory = case
    if tied:
        directory = tmp_path / "case"
        write_graft(directory, tie_word_embeddings=True)
        write_tokens(directory, steps=1)
    train(directory, tmp_path / "out", schedule={"kind": "constant"}, **change)
    first = next(line for line in lines(tmp_path / "out") if "train/loss" in line)
    model = hf_model("llama", tie_word_embeddings=tied)
    samples = samples_in_order(directory, tmp_path / "samples", 1)
    tokens, labels, _ = batch_of(samples, 0)
    logits = model(input_ids=tokens).logits
    torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1)).backward()
    matrices = {"input": model.model.embed_tokens.weight, "output": model.lm_head.weight}
    if tied:
        del matrices["output"]
    expected = {}
    for side, weight in matrices.items():
        for kind, rows in (("old", slice(0, BASE_ROWS)), ("new", slice(BASE_ROWS, VOCABULARY))):
            expected[f"parameter_norm/{side}_embedding/{kind}_rows"] = float(weight[rows].detach().norm())
            expected[f"gradient_norm/{side}_embedding/{kind}_rows"] = float(weight.grad[rows].norm())
    assert {key: value for key, value in first.items() if "_norm/" in key} == pytest.approx(
        expected, rel=1e-4
    )


def graph(case: Path, run_dir: Path, **changes: object) -> Graph:
    config = settings(**changes)
    stage = Stage(
        "train", config, ("graft", "tokens"), "tsugiki.pretrain.train:run",
        {"graft": case / "graft", "tokens": case / "tokens"}, keep_partial=True, precious=True,
    )  # fmt: skip
    context = StageContext(seed=5, workers=1, experiment_name="observed")
    return Graph([stage], run_dir, context, TrackingConfig(experiment="training"), lambda line: None)


def execute(made: Graph, launched: bool = False) -> None:
    """Run the stage; with processes launched as users' are, which can be stopped, or quicker ones."""
    with contextlib.nullcontext() if launched else forked():
        made.run(list(made.stages.values()), TrainConfig())


@contextlib.contextmanager
def stopping(run_dir: Path, step: int, before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Sends SIGTERM to the launcher of the ranks once that step is in metrics.jsonl."""

    def watch() -> None:
        for _ in range(60_000):
            for path in run_dir.glob("*/metrics.jsonl"):
                steps = re.findall(r'"step": (\d+)', path.read_text())
                if steps and int(steps[-1]) >= step:
                    before()
                    for child in psutil.Process().children():
                        with contextlib.suppress(psutil.NoSuchProcess):
                            if "tsugiki.pretrain.training.worker" in child.cmdline():
                                child.send_signal(signal.SIGTERM)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_mlflow_has_the_whole_curve_once(case: Path, tmp_path: Path) -> None:
    """Stopped after some steps, continued in the same run, then failing in a run of its own; read back."""
    run_dir = tmp_path / "observed"
    options = {"validation_interval_steps": 10, "save_interval_steps": 100}
    with stopping(run_dir, 3), pytest.raises(Interrupted):
        execute(graph(case, run_dir, **options), launched=True)
    client = MlflowClient(tracking_uri=default_uri(run_dir))
    experiment = client.get_experiment_by_name("training").experiment_id

    def runs(name: str) -> list[object]:
        return [run for run in client.search_runs([experiment]) if run.info.run_name == name]

    (parent,), (child,) = runs("observed"), runs("train")
    assert parent.info.status == child.info.status == "KILLED"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id

    execute(graph(case, run_dir, **options))
    (parent,), (again,) = runs("observed"), runs("train")
    assert again.info.run_id == child.info.run_id, "the same run goes on"
    assert parent.info.status == again.info.status == "FINISHED"
    written = [json.loads(text) for text in (run_dir / "train" / "metrics.jsonl").read_text().splitlines()]
    for key in ("train/loss", "train/grad_norm", "validation/bits_per_byte/ja", "memory/resident_bytes"):
        points = sorted(client.get_metric_history(again.info.run_id, key), key=lambda point: point.step)
        expected = [(line["step"], line[key]) for line in written if key in line]
        assert [(point.step, point.value) for point in points] == expected
        assert expected
    steps = [point.step for point in client.get_metric_history(again.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert again.data.params["optimizer.learning_rate"] == "0.003"
    assert int(again.data.params["train/steps"]) == STEPS
    assert again.data.metrics["checkpoint/blocking_seconds"] > 0
    mark = run_dir / "train" / "checkpoints" / f"iter_{STEPS:07d}" / "checkpoint.json"
    assert json.loads(mark.read_text())["tracking_runs"] == {"mlflow": child.info.run_id}

    with pytest.raises(TrainingError):
        failing = {"action": "stop", "spike_factor": 1.0001, "window_steps": 4}
        execute(graph(case, run_dir, anomalies=failing, **options))
    statuses = {run.info.run_id: run.info.status for run in runs("train")}
    assert sorted(statuses.values()) == ["FAILED", "FINISHED"]
    assert runs("observed")[0].info.status == "FAILED"
    (failed,) = (run for run in runs("train") if run.info.status == "FAILED")
    assert failed.data.metrics["anomaly/count"] == 1, "the event is there"
    assert failed.data.metrics["anomaly/loss"] > 0


def _overwrite(store: Path) -> None:
    store.write_bytes(b"broken" * 10_000)


def test_a_store_that_fails_neither_spoils_a_stop_nor_keeps_the_run_from_going_on(
    case: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its file is overwritten while the training runs. The next start keeps it and makes a new one."""
    run_dir = tmp_path / "observed"
    store = tmp_path / "mlflow.db"
    options = {"save_interval_steps": 100}
    with stopping(run_dir, 3, lambda: _overwrite(store)), pytest.raises(Interrupted) as caught:
        execute(graph(case, run_dir, **options), launched=True)
    assert caught.value.exit_code == 75
    assert capfd.readouterr().err.count("tracking fails") >= 1

    execute(graph(case, run_dir, **options))
    # SQLite may have had pages to write when the file was overwritten: then it calls the result malformed.
    why = r" \((file is not a database|database disk.*)\), kept as mlflow.db.broken-1"
    assert re.search(re.escape(f"{store} is broken") + why, capfd.readouterr().err)
    assert b"brokenbroken" in (tmp_path / "mlflow.db.broken-1").read_bytes()
    assert len(curve(run_dir / "train")) == STEPS


AS_A_RANK = """
import os
from pathlib import Path
from typing import Any
os.environ |= {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.runs import Trackers, open_run
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.train import run
case, output = Path(case), Path(output)
tracker = open_run(TrackingConfig(experiment="ranks"), output.parent, "train") if rank == "0" else Trackers()
config = TrainConfig.model_validate_json(config)
run(config, {"graft": case / "graft", "tokens": case / "tokens"}, output, StageContext(seed=5, tracker=tracker))
"""


@pytest.mark.parametrize(("size", "parallel"), [(1, {}), (2, {"pipeline": 2})], ids=["rank 0", "rank 1"])
def test_rank_0_of_a_job_sends_what_the_logging_rank_writes(
    case: Path, tmp_path: Path, size: int, parallel: dict[str, int]
) -> None:
    """As srun or torchrun start it: there is no launcher, rank 0 follows metrics.jsonl, from a thread."""
    output = tmp_path / "runs" / "x"
    output.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = settings(log_interval_steps=4, validation_interval_steps=10, parallel=parallel).model_dump_json()
    values = {
        "port": str(port),
        "case": str(case),
        "output": str(output),
        "config": config,
        "size": str(size),
    }
    codes = [
        "".join(f"{name} = {value!r}\n" for name, value in {**values, "rank": str(rank)}.items()) + AS_A_RANK
        for rank in range(size)
    ]
    server().execute(tmp_path / "console.log", *codes)
    for rank in range(size):
        logs = (tmp_path / f"console.log.{rank}").read_text()
        assert ("checkpoint saved" in logs) is (rank == size - 1)
    client = MlflowClient(tracking_uri=default_uri(output.parent))
    (run,) = client.search_runs([client.get_experiment_by_name("ranks").experiment_id])
    for key in ("train/loss", "throughput/tokens_per_second", "validation/loss/en", "checkpoint/seconds"):
        points = client.get_metric_history(run.info.run_id, key)
        expected = [(line["step"], line[key]) for line in lines(output) if key in line]
        assert sorted((point.step, point.value) for point in points) == expected and expected
    assert run.data.params["train/processes"] == str(size)


COUNTED = """
import collections, json, traceback
from pathlib import Path
from typing import Any
import torch
from tsugiki.pretrain.training.step import TrainingStep

reads, steps = collections.Counter(), []

def counted(name):
    original = getattr(torch.Tensor, name)
    def read(tensor, *arguments):
        reads["".join(traceback.format_stack(limit=8)[-3:-1])] += 1
        return original(tensor, *arguments)
    setattr(torch.Tensor, name, read)

for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy"):
    counted(name)
waits = []
all_reduce = torch.distributed.all_reduce
def reduced(tensor, *arguments, group=None, **options):
    waits.append(group is None)
    return all_reduce(tensor, *arguments, group=group, **options)
torch.distributed.all_reduce = reduced
gradients, update = TrainingStep.gradients, TrainingStep.update
def begin(self, *arguments):
    reads.clear()
    waits.clear()
    return gradients(self, *arguments)
def end(self, *arguments):
    update(self, *arguments)
    steps.append([sum(reads.values()), sum(waits), list(reads)])
    Path("PATH").write_text(json.dumps(steps))
TrainingStep.gradients, TrainingStep.update = begin, end
"""


@pytest.mark.parametrize("layout", [{}, {"optimizer": {"distributed": False, "clip_grad_norm": 0.01}}])
def test_the_host_waits_once_a_step(case: Path, tmp_path: Path, layout: dict[str, Any]) -> None:
    """Loss, norm and what the ranks tell each other come in one all-reduce, whatever is clipped."""
    path = tmp_path / "reads.json"
    options = {"log_interval_steps": 100, **layout}
    train(case, tmp_path / "out", fault=COUNTED.replace("PATH", str(path)), **options)
    steps = json.loads(path.read_text())
    assert len(steps) == STEPS
    # The last step writes a log line, with norms of its own.
    assert {(reads, waits) for reads, waits, _ in steps[:-1]} == {(1, 1)}, steps[-2]
