"""Whole conversations in a sequence: the loss of each alone, under every layout, in training and in validation."""

from pathlib import Path

import numpy
import pytest
import torch
from training_case import EOD, console, curve, hf_model, train, weights, write_graft, write_tokens

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.text.chat_tokens import mark, unmark

SOME = {"validation_interval_steps": 1, "save_interval_steps": 1, "keep_last_checkpoints": 9}


def conversations(documents: list[list[int]]) -> list[list[int]]:
    """Two turns of which the answers count, ended by the end of document both times."""
    turns = []
    for ids in documents:
        half, quarter = len(ids) // 2, len(ids) // 4
        counted = [quarter <= n < half or n >= half + quarter for n in range(len(ids))]
        ids = [EOD if n == half - 1 else token for n, token in enumerate(ids)]
        turns.append([mark(*pair) for pair in zip(ids, counted, strict=True)])
    return turns


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory, steps=3, change=conversations, signed=True)
    mixture = Mixture.load(directory / "tokens")
    chats = [source.model_copy(update={"kind": "instruction"}) for source in mixture.sources]
    mixture.model_copy(update={"sources": chats}).save(directory / "tokens")
    return directory


@pytest.fixture(scope="module")
def alone(case: Path) -> Path:
    train(case, case / "alone", conversations="apart", **SOME)
    return case / "alone"


def documents(case: Path, prefix: str) -> list[numpy.ndarray]:
    """Stored numbers, without Megatron's reader."""
    index = (case / "tokens" / f"{prefix}.idx").read_bytes()
    count = int(numpy.frombuffer(index, "<u8", 1, 18)[0])
    lengths = numpy.frombuffer(index, "<i4", count, 34)
    data = numpy.fromfile(case / "tokens" / f"{prefix}.bin", numpy.int32)
    return [part.astype(numpy.int64) for part in numpy.split(data, lengths.cumsum()[:-1])]


def losses(stored: numpy.ndarray, context: int = 0) -> torch.Tensor:
    """Of the learned tokens behind the first `context`, by transformers on this text alone."""
    ids, counts = (torch.from_numpy(part) for part in unmark(stored))
    with torch.no_grad():
        logits = hf_model("llama").eval()(input_ids=ids[None]).logits[0]
    found = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    keep = counts[1:].clone()
    keep[:context] = False
    return found[keep]


def test_held_out_conversations_are_seen_whole_and_alone(case: Path, alone: Path, tmp_path: Path) -> None:
    """At a learning rate of nothing the validation loss is that of the first weights."""
    train(
        case,
        tmp_path,
        conversations="apart",
        optimizer={"learning_rate": 1e-12, "minimum_learning_rate": 0},
        **SOME,
    )
    for language in ("en", "ja"):
        expected = torch.cat([losses(part[:32]) for part in documents(case, f"{language}.heldout")])
        found = curve(tmp_path, f"validation/loss/{language}-chat")[0]
        assert found == pytest.approx(float(expected.mean()), abs=2e-6)


@pytest.mark.parametrize(
    "layout",
    [{"tensor": 2, "pipeline": 2, "sequence": True}, {"context": 2}],
    ids=["tp2-pp2-sp", "cp2"],
)
def test_same_under_every_layout(case: Path, alone: Path, tmp_path: Path, layout: dict[str, object]) -> None:
    train(case, tmp_path, conversations="apart", parallel=layout, **SOME)
    for key in ("train/loss", "train/grad_norm", "validation/loss/en-chat"):
        assert curve(tmp_path, key) == pytest.approx(curve(alone, key), rel=1e-5, abs=1e-5)


def test_goes_on_to_the_bit(case: Path, alone: Path, tmp_path: Path) -> None:
    from shutil import copytree, rmtree

    copytree(alone, tmp_path / "stopped")
    store = tmp_path / "stopped/checkpoints"
    for step in (2, 3):
        rmtree(store / f"iter_{step:07d}")
    train(case, tmp_path / "stopped", conversations="apart", **SOME)
    assert weights(tmp_path / "stopped", 3) == weights(alone, 3)


def test_counts_padding_and_what_is_too_long(case: Path, alone: Path) -> None:
    said = console(alone)
    for language in ("en", "ja"):
        long = [part for part in documents(case, language) if len(part) > 32]
        lost = sum(not (part[1:32] >= 0).any() for part in long)
        assert f"{len(long) - lost:,} shortened, {lost:,} left out" in said
    assert "% padding" in said


def test_shared_conversations_see_those_before(case: Path, alone: Path, tmp_path: Path) -> None:
    train(case, tmp_path, conversations="shared", **SOME)
    assert abs(curve(tmp_path)[0] - curve(alone)[0]) > 1e-4
