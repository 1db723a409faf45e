"""Exporting while a training writes and deletes checkpoints."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from convert_material import read_weights, same_bits
from training_case import train, write_graft, write_tokens

import tsugiki.pretrain.conversion.export_hf
from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.conversion.trained_model import TrainedModel, find_checkpoint, while_whole
from tsugiki.pretrain.convert import export_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig

STEPS = 20
PLAIN = ExportConfig(verify=False)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory, steps=STEPS)
    return directory


@pytest.fixture(scope="module")
def every_step(case: Path) -> Path:
    """The same training, undisturbed, that keeps the checkpoint of every step."""
    train(case, case / "every-step", save_interval_steps=1, keep_last_checkpoints=STEPS)
    return case / "every-step"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_exports_during_training_are_exactly_one_checkpoint(
    case: Path, every_step: Path, tmp_path: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint every step, only the newest kept: exports race with writing and with deleting."""
    used: list[TrainedModel] = []
    write = tsugiki.pretrain.conversion.export_hf.write_export

    def recorded(model: TrainedModel, *arguments: Any, **options: Any) -> dict[str, Any]:
        used.append(model)
        return write(model, *arguments, **options)

    monkeypatch.setattr("tsugiki.pretrain.conversion.export_hf.write_export", recorded)
    output = tmp_path / "train"
    settings = {"keep_last_checkpoints": 1, "asynchronous_checkpoints": asynchronous}
    training = threading.Thread(
        target=train, args=(case, output), kwargs={"save_interval_steps": 1, **settings}
    )
    training.start()
    exported: dict[int, Path] = {}
    number = given_up = 0
    while not exported or max(exported) < STEPS:
        number += 1
        going_on = training.is_alive()
        try:
            export_checkpoint(output, tmp_path / f"export-{number}", config=PLAIN)
        except CheckpointError as error:
            # Training outran this machine, or nothing was whole between two checkpoints; nothing is left behind.
            assert "deleted the checkpoint" in str(error) or "no checkpoint here" in str(error)
            assert not (tmp_path / f"export-{number}").exists()
            assert going_on, error
            given_up += 1
        else:
            step = used[-1].iteration
            assert step is not None
            exported[step] = tmp_path / f"export-{number}"
            assert going_on or step == STEPS, "training ended early"
    training.join()
    assert len(exported) > 1, (exported, given_up)
    for step, directory in exported.items():
        export_checkpoint(
            every_step, tmp_path / f"reference-{step}", config=ExportConfig(verify=False, iteration=step)
        )
        found, expected = read_weights(directory), read_weights(tmp_path / f"reference-{step}")
        assert found.keys() == expected.keys()
        assert [name for name in expected if not same_bits(expected[name], found[name])] == [], step


def test_a_checkpoint_deleted_while_it_is_read_gives_way_to_the_newest(
    every_step: Path, tmp_path: Path
) -> None:
    train_dir = tmp_path / "train"
    shutil.copytree(every_step, train_dir)
    newest = train_dir / "checkpoints" / f"iter_{STEPS:07}"
    used: list[int | None] = []

    def use(model: TrainedModel) -> int | None:
        used.append(model.iteration)
        if model.iteration == STEPS:
            shutil.rmtree(newest)
            (newest / "metadata.json").read_text()  # as a reader finds out
        return model.iteration

    assert while_whole(train_dir, None, use) == STEPS - 1
    assert used == [STEPS, STEPS - 1]

    def delete(model: TrainedModel) -> None:
        shutil.rmtree(model.checkpoint)

    with pytest.raises(CheckpointError, match="deleted the checkpoint") as raised:
        while_whole(train_dir, 7, delete)
    assert "train.keep_last_checkpoints" in str(raised.value)


def test_a_checkpoint_written_anew_while_it_is_read_is_read_again(every_step: Path, tmp_path: Path) -> None:
    """After a rollback training saves the same step again."""
    train_dir = tmp_path / "train"
    shutil.copytree(every_step, train_dir)
    mark = train_dir / "checkpoints" / f"iter_{STEPS:07}" / "checkpoint.json"
    calls = []

    def use(model: TrainedModel) -> int:
        calls.append(model.facts["consumed_tokens"])
        if len(calls) == 1:
            mark.write_text(json.dumps({**model.facts, "consumed_tokens": 1}))
        return len(calls)

    assert while_whole(train_dir, None, use) == 2
    assert calls[1] == 1


def test_other_errors_are_not_hidden(every_step: Path) -> None:
    def use(model: TrainedModel) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        while_whole(every_step, None, use)
    assert find_checkpoint(every_step).iteration == STEPS
