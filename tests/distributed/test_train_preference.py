"""Preference tuning in the trainer: TRL's loss and gradient, every layout alike, resumable to the bit."""

from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy
import pytest
from preference_case import TABLE, trl_script, write_case, write_reference
from training_case import curve, forked, lines, settings, train, weights

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pretrain.reference import ReferenceConfig
from tsugiki.pretrain.reference import run as read_pairs
from tsugiki.pretrain.training.preference import reference

STEPS = 3
CASES = trl_script().CASES
DPO: dict[str, Any] = {
    **CASES["dpo"], "micro_batch": 2, "validation_interval_steps": 1, "save_interval_steps": 1, "keep_last_checkpoints": 9,
}  # fmt: skip
LAYOUTS: dict[str, dict[str, object]] = {
    "tp2-pp2-sp": {"tensor": 2, "pipeline": 2, "sequence": True},
    "dp2-cp2": {"data": 2, "context": 2},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_case(directory, STEPS)
    write_reference(
        directory / "reference", TABLE["dpo"]["reference"], directory / "graft", directory / "tokens"
    )
    return directory


@pytest.fixture(scope="module")
def alone(case: Path) -> Path:
    train(case, case / "alone", **DPO)
    return case / "alone"


@pytest.mark.parametrize(
    "name", ["dpo", "ipo", "simpo"]
)  # all of them: tests/unit/pretrain/test_preference_losses.py
def test_loss_and_gradient_of_trl(case: Path, tmp_path: Path, name: str) -> None:
    """All pairs are in one sequence, and that is the step."""
    whole = {"sequence_length": 256, "global_batch": 1, "micro_batch": 1}
    still = {"optimizer": {"learning_rate": 1e-12, "minimum_learning_rate": 0}}
    train(case, tmp_path, **{**DPO, **CASES[name], **whole, **still})
    assert curve(tmp_path)[0] == pytest.approx(TABLE[name]["loss"], abs=1e-5)
    assert curve(tmp_path, "train/grad_norm")[0] == pytest.approx(TABLE[name]["grad_norm"], rel=1e-5)
    # The same pairs are held out.
    assert curve(tmp_path, "validation/loss/en-pairs")[0] == pytest.approx(TABLE[name]["loss"], abs=1e-5)
    chosen, rejected = numpy.array(TABLE[name]["lengths"]).mean(axis=0)
    line = lines(tmp_path)[0]
    assert (line["preference/tokens_chosen"], line["preference/tokens_rejected"]) == (chosen, rejected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_under_every_layout(case: Path, alone: Path, tmp_path: Path, layout: str) -> None:
    train(case, tmp_path, **DPO, parallel=LAYOUTS[layout])
    keys = (
        "train/loss",
        "train/grad_norm",
        "preference/margin",
        "preference/kl",
        "validation/margin/en-pairs",
    )
    for key in keys:
        assert curve(tmp_path, key) == pytest.approx(curve(alone, key), rel=1e-5, abs=1e-5)
    assert curve(tmp_path, "validation/accuracy/en-pairs") == curve(alone, "validation/accuracy/en-pairs")


def test_learns_what_is_preferred(alone: Path) -> None:
    margins = curve(alone, "validation/margin/en-pairs")
    assert margins == sorted(margins) and margins[-1] > margins[0] + 0.1


def test_goes_on_to_the_bit(case: Path, alone: Path, tmp_path: Path) -> None:
    copytree(alone, tmp_path / "stopped")
    for step in (2, 3):
        rmtree(tmp_path / f"stopped/checkpoints/iter_{step:07d}")
    train(case, tmp_path / "stopped", **DPO)
    assert weights(tmp_path / "stopped", STEPS) == weights(alone, STEPS)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_reference_of_the_first_weights(case: Path, tmp_path: Path, layout: dict[str, object]) -> None:
    """The graft holds TRL's policy: what it says of the pairs is in the table. Twice the pairs of a sequence fit."""
    config = ReferenceConfig.of(settings(**DPO, parallel=layout))
    inputs = {"graft": case / "graft", "tokens": case / "tokens"}
    with forked():
        result = read_pairs(config, inputs, tmp_path, StageContext(seed=5))
    found = reference.load(tmp_path, "pairs")
    assert numpy.allclose(found, TABLE["dpo"]["policy"], rtol=1e-6, atol=2e-5)
    assert numpy.array_equal(found, reference.load(tmp_path, "pairs.heldout"))
    assert result.counts == {"pairs": 16, "pairs_that_do_not_fit": 0}
    reference.check(tmp_path, case / "graft", case / "tokens")


def test_a_reference_of_others_is_refused(case: Path, tmp_path: Path) -> None:
    copytree(case / "reference", tmp_path / "reference")
    path = tmp_path / "reference/reference.json"
    own = path.read_text()
    for name, what in (("model", "model"), ("tokens", "tokenizer")):
        mark = getattr(reference.Reference.load(case / "reference"), name)
        path.write_text(own.replace(mark, "0" * 64))
        with pytest.raises(DataError, match=f"made by another {what}"):
            reference.check(tmp_path / "reference", case / "graft", case / "tokens")


def test_the_next_token_is_not_learned_from_pairs(case: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not what train\.objective: next_token learns from"):
        train(case, tmp_path)
