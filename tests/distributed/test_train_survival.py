"""Training goes on after kills, stops, damaged checkpoints and bad losses."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from training_case import (
    BASE_ROWS,
    STEPS,
    VOCABULARY,
    curve,
    kill,
    lines,
    start,
    train,
    wait_for_step,
    weights,
    write_graft,
    write_tokens,
)

from experiment.errors import TrainingError
from pretrain.job import INTERRUPTED_EXIT_CODE


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.fixture(scope="module")
def uninterrupted(case: Path) -> Path:
    train(case, case / "uninterrupted", save_interval_steps=4, keep_checkpoints=9)
    return case / "uninterrupted"


def test_killed_at_random_steps_ends_in_the_same_checkpoint(case: Path, uninterrupted: Path) -> None:
    output = case / "killed"
    generator = random.Random(3)
    done = 0
    for _ in range(3):
        process = start(case, output, save_interval_steps=4, keep_checkpoints=9)
        done = min(done + generator.randint(3, 7), STEPS - 1)
        wait_for_step(output, done, process)
        kill(process)
    train(case, output, save_interval_steps=4, keep_checkpoints=9)
    assert weights(output, STEPS) == weights(uninterrupted, STEPS)
    assert curve(output) == curve(uninterrupted)


def test_resumed_under_another_layout(case: Path, uninterrupted: Path) -> None:
    output = case / "moved"
    shutil.copytree(uninterrupted, output)
    for step in (12, 16, STEPS):
        shutil.rmtree(output / "checkpoints" / f"iter_{step:07d}")
    train(case, output, parallel={"tensor": 2, "pipeline": 2}, save_interval_steps=4)
    assert curve(output) == pytest.approx(curve(uninterrupted), abs=1e-5)


def test_a_stop_saves_and_the_next_run_goes_on(case: Path, uninterrupted: Path) -> None:
    output = case / "stopped"
    process = start(case, output, save_interval_steps=100, parallel={"tensor": 2})
    wait_for_step(output, 3, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    out, error = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED_EXIT_CODE, (out, error)
    stopped = json.loads((output / "checkpoints" / "latest.json").read_text())["iteration"]
    assert 3 <= stopped < STEPS
    train(case, output, save_interval_steps=100, parallel={"tensor": 2})
    assert curve(output) == pytest.approx(curve(uninterrupted), abs=1e-5)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_damaged_newest_checkpoint(
    case: Path, uninterrupted: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    output = case / damage
    shutil.copytree(uninterrupted, output)
    victim = output / "checkpoints" / f"iter_{STEPS:07d}" / "__0_0.distcp"
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(content[:-10])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    train(case, output, save_interval_steps=4, keep_checkpoints=9)
    assert f"checkpoint of step {STEPS} is damaged" in capfd.readouterr().out
    assert weights(output, STEPS) == weights(uninterrupted, STEPS)


def test_frozen_rows_and_layers_do_not_move(case: Path) -> None:
    """As EEVE: new input rows first, then new output rows and the last layer, then everything."""
    import torch

    from pretrain.dist_files import DistReader

    output = case / "phases"
    phases = [
        {"trains": ["new_input_rows"], "until_tokens": 4 * 256},
        {"trains": ["new_output_rows", "layers:-1"], "until_tokens": 8 * 256},
        {"trains": ["all"]},
    ]
    train(case, output, phases=phases, save_interval_steps=4, keep_checkpoints=9, parallel={"tensor": 2})

    def read(path: Path, key: str) -> torch.Tensor:
        reader = DistReader(path)
        tensor = reader.read(key, tuple((0, size) for size in reader.tensors[key].shape))
        reader.close()
        return tensor

    at = [
        case / "graft" / "checkpoint",
        *(output / "checkpoints" / f"iter_{step:07d}" for step in (4, 8, 12)),
    ]
    table, head = "embedding.word_embeddings.weight", "output_layer.weight"
    layers, norm = "decoder.layers.mlp.linear_fc1.weight", "decoder.final_layernorm.weight"
    before, first, second, third = (
        {key: read(path, key) for key in (table, head, layers, norm)} for path in at
    )
    assert first[table].shape[0] == VOCABULARY
    assert first[table][:BASE_ROWS].equal(before[table][:BASE_ROWS])
    assert not first[table][BASE_ROWS:].equal(before[table][BASE_ROWS:])
    for key in (head, layers, norm):
        assert first[key].equal(before[key])
    assert second[table].equal(first[table])
    assert second[head][:BASE_ROWS].equal(before[head][:BASE_ROWS])
    assert not second[head][BASE_ROWS:].equal(before[head][BASE_ROWS:])
    assert second[layers][:-1].equal(before[layers][:-1])
    assert not second[layers][-1].equal(before[layers][-1])
    assert all(not third[key].equal(second[key]) for key in (table, head, layers, norm))


def test_a_spike_is_skipped_and_recorded(case: Path) -> None:
    output = case / "spike"
    train(
        case,
        output,
        optimizer={"learning_rate": 3e-3, "minimum_learning_rate": 3e-4, "clip_grad_norm": 0},
        anomalies={"action": "skip", "spike_factor": 1.03, "window_steps": 4, "maximum_anomalies": 50},
        save_interval_steps=5,
    )
    events = [line for line in lines(output) if "event" in line]
    assert events
    mark = json.loads((output / "checkpoints" / f"iter_{STEPS:07d}" / "checkpoint.json").read_text())
    assert mark["skipped_batches"] == sorted(line["step"] - 1 for line in events)
    assert {line["event"] for line in events} == {"skip"}


def test_too_many_anomalies_end_the_run(case: Path) -> None:
    """Rolled back each time, until the limit."""
    with pytest.raises(TrainingError, match=r"loss is not what it should be"):
        train(
            case,
            case / "diverges",
            anomalies={
                "action": "rollback",
                "spike_factor": 1.0001,
                "window_steps": 4,
                "maximum_anomalies": 2,
            },
            save_interval_steps=2,
        )
    events = [line["event"] for line in lines(case / "diverges") if "event" in line]
    assert events == ["rollback"] * 3


def test_a_hang_ends_with_its_reason(case: Path) -> None:
    """The first step, with its imports, takes longer than the watchdog allows."""
    with pytest.raises(TrainingError, match="training hangs") as caught:
        train(case, case / "hang", watchdog_seconds=0.001)
    assert "watchdog_seconds" in str(caught.value)


def test_a_full_disk_leaves_the_last_checkpoint(case: Path, tmp_path: Path) -> None:
    """A file size limit stands for the full disk: writing fails in the middle."""
    import resource

    from experiment.errors import CheckpointError

    output = case / "full"
    train_two = {"save_interval_steps": 4, "keep_checkpoints": 9}
    process = start(case, output, **train_two)
    wait_for_step(output, 5, process)
    kill(process)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
            train(case, output, **train_two)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    latest = json.loads((output / "checkpoints" / "latest.json").read_text())["iteration"]
    assert (output / "checkpoints" / f"iter_{latest:07d}" / "checkpoint.json").is_file()
    train(case, output, **train_two)
    assert json.loads((output / "checkpoints" / "latest.json").read_text())["iteration"] == STEPS
