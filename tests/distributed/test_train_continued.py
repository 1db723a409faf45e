"""Runs that begin at another run's checkpoint, and mixtures that change on the way."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_case import (
    BOS,
    EOD,
    GLOBAL_BATCH,
    checkpoint_tensor,
    console,
    curve,
    train,
    weights,
    write_graft,
    write_tokens,
)

from tsugiki.experiment.artefacts.mixture import Mixture, MixtureChange

STEPS = 6
FIRST = {"schedule": {"kind": "constant"}, "save_interval_steps": 1, "keep_last_checkpoints": 99}
SECOND = {**FIRST, "schedule": {"kind": "cooldown", "decay_shape": "1-sqrt"}}
WITHOUT_MOVING = {
    "learning_rate": 1e-30, "minimum_learning_rate": 0.0, "betas": [0.5, 0.25], "clip_grad_norm": 1e-30
}  # fmt: skip
EMBEDDING = "embedding.word_embeddings.weight"

# Writes down what a run reads: number of the sample, its tokens and its last label.
RECORDER = """
import json
from tsugiki.pretrain.training.samples.batches import TrainingData
original = TrainingData.sample
def sample(self, index):
    item = original(self, index)
    with open({path!r}, "a") as file:
        file.write(json.dumps([index, *item.tokens.tolist(), int(item.labels[-1])]) + "\\n")
    return item
TrainingData.sample = sample
"""


def nameable(documents: list[list[int]]) -> list[list[int]]:
    """The same lengths, of two tokens in turn: any two neighbours tell which document they are from."""
    pairs = [(a, b) for a in range(3, 100) for b in range(a + 1, 101)]
    first = 0 if len(documents) == 300 else 1000  # Japanese has 200 documents
    return [
        [BOS, *(pairs[first + number][place % 2] for place in range(len(ids) // 2 * 2 - 2)), EOD]
        for number, ids in enumerate(documents)
    ]


def documents(path: Path, steps: range) -> set[tuple[int, int]]:
    """The pair of every document of which a run has read two tokens or more in those steps."""
    found = set()
    for text in path.read_text().splitlines():
        index, *ids = json.loads(text)
        if index // GLOBAL_BATCH not in steps:
            continue
        piece: list[int] = []
        for token in [*ids, EOD]:
            if token not in (BOS, EOD):
                piece.append(token)
                continue
            if len(piece) > 1:
                found.add((min(piece), max(piece)))
            piece = []
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a run of six steps."""
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory, STEPS, change=nameable)
    train(directory, directory / "train", fault=RECORDER.format(path=str(directory / "read")), **FIRST)
    return directory


def go_on(case: Path, run: Path, of: str, **changes: object) -> Path:
    """Another run directory, whose run continues."""
    run.mkdir()
    (run / "tokens").symlink_to(case / "tokens")
    fault = RECORDER.format(path=str(run / "read"))
    train(case, run / "train", fault=fault, **{**SECOND, "continue_from": of, **changes})
    return run


@pytest.fixture(scope="module")
def second(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go_on(case, tmp_path_factory.mktemp("second") / "run", f"{case}@3")


def test_what_was_read_is_left_out(case: Path, second: Path, tmp_path: Path) -> None:
    """Also by a third run, of what the first has read; two ranks find the same."""
    first = documents(case / "read", range(3))
    later = documents(second / "read", range(STEPS))
    assert first and later and not first & later
    third = go_on(case, tmp_path / "third", f"{second}@2", parallel={"data": 2})
    assert not documents(third / "read", range(STEPS)) & (first | documents(second / "read", range(2)))
    assert "documents were read and come last" in console(second / "train")
    again = go_on(case, tmp_path / "again", f"{case}@3", continue_repeats_data=True)
    assert documents(again / "read", range(3)) == first


def test_other_documents_are_not_left_out_and_it_is_said(case: Path, tmp_path: Path) -> None:
    """The same name in another corpus: document 5 is another one."""
    write_graft(tmp_path)
    write_tokens(tmp_path, STEPS, change=lambda ids: [*reversed(nameable(ids))])
    output = tmp_path / "train"
    train(tmp_path, output, **SECOND, continue_from=f"{case}@3")
    assert "en: nothing is left out: its documents are others than" in console(output)
    assert len(curve(output)) == STEPS


def test_a_cooldown_from_a_checkpoint(case: Path, second: Path, tmp_path: Path) -> None:
    """By hand: 3e-4 + 2.7e-3 (1 - sqrt(k / 6)); killed in the middle of it, it ends in the same bits."""
    rates = curve(second / "train", "train/learning_rate")
    assert rates == pytest.approx([3e-4 + 2.7e-3 * (1 - (k / 6) ** 0.5) for k in range(1, 7)])
    options = {**SECOND, "continue_from": f"{case}@3"}
    output = tmp_path / "killed"
    train(case, output, **options)
    shutil.rmtree(output / "checkpoints" / "iter_0000006")
    for step in (4, 5):
        shutil.rmtree(output / "checkpoints" / f"iter_{step:07d}")
    train(case, output, **options)
    assert curve(output) == curve(second / "train")
    assert weights(output, STEPS) == weights(second / "train", STEPS)


@pytest.mark.parametrize("moments", [True, False])
def test_moments_are_taken_over_or_not(case: Path, tmp_path: Path, moments: bool) -> None:
    """A step that moves nothing, with a gradient of nothing: each moment is its old value times the new beta."""
    changes = {"optimizer": WITHOUT_MOVING, "schedule": {"kind": "constant"}, "continue_moments": moments}
    run = go_on(case, tmp_path / "run", f"{case}@3", **changes)
    before, after = (
        folder / "train" / "checkpoints" / name
        for folder, name in ((case, "iter_0000003"), (run, "iter_0000001"))
    )
    assert checkpoint_tensor(after, EMBEDDING).equal(checkpoint_tensor(before, EMBEDDING))
    for number, beta in ((("exp_avg"), 0.5), ("exp_avg_sq", 0.25)):
        key = f"optimizer.state.{number}.{EMBEDDING}"
        expected = checkpoint_tensor(before, key) * (beta if moments else 0.0)
        torch.testing.assert_close(checkpoint_tensor(after, key), expected, rtol=0, atol=1e-29)


def test_a_mixture_that_changes(case: Path, tmp_path: Path) -> None:
    """English alone until token 500, which is in the second step of 256; then a quarter of it. Stopped on both
    sides of the change, the run ends in the same bits; no document is read twice because of it."""
    shutil.copytree(case / "tokens", tmp_path / "tokens")
    (tmp_path / "graft").symlink_to(case / "graft")
    stretches = [
        {"from_tokens": 0, "shares": {"en": 1.0}},
        {"from_tokens": 500, "shares": {"en": 0.25, "ja": 0.75}},
    ]
    mixture = Mixture.load(tmp_path / "tokens")
    mixture.model_copy(update={"changes": [MixtureChange.model_validate(item) for item in stretches]}).save(
        tmp_path / "tokens"
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(tmp_path, whole, fault=RECORDER.format(path=str(tmp_path / "read")), **FIRST)
    counted = [
        json.loads((whole / "checkpoints" / f"iter_{step:07d}" / "checkpoint.json").read_text())[
            "consumed_samples_by_source"
        ]
        for step in (2, STEPS)
    ]
    assert counted == [{"en": 16, "ja": 0}, {"en": 24, "ja": 24}]
    first, then = (documents(tmp_path / "read", steps) for steps in (range(2), range(2, STEPS)))
    assert all(pair < (13, 0) for pair in first) and any(pair > (13, 0) for pair in then)
    assert "mixture 1: en 100.0%" in console(whole) and "mixture 2: en 25.0%, ja 75.0%" in console(whole)
    train(tmp_path, stopped, **FIRST)
    for newest in (4, 1):
        for step in range(newest + 1, STEPS + 1):
            shutil.rmtree(stopped / "checkpoints" / f"iter_{step:07d}")
        train(tmp_path, stopped, **FIRST)
        assert weights(stopped, STEPS) == weights(whole, STEPS)
