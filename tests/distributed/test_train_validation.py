"""Validation against transformers on the same held-out text, under every kind of layout."""

import math
from pathlib import Path

import pytest
import torch
from training_case import BOS, SEQUENCE, hf_model, lines, train, write_graft, write_tokens

LIMIT = 1600
"""Bytes of held-out text of a language; every token of the case stands for three."""


@pytest.fixture(scope="module")
def heldout() -> dict[str, list[list[int]]]:
    """Filled when the tokens are written."""
    return {}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, heldout: dict[str, list[list[int]]]) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    calls = iter(["", "en", "", "ja"])

    def note(documents: list[list[int]]) -> list[list[int]]:
        if language := next(calls):
            heldout[language] = documents
        return documents

    write_tokens(directory, steps=1, change=note)
    return directory


@pytest.fixture(scope="module")
def expected(case: Path, heldout: dict[str, list[list[int]]]) -> dict[str, float]:
    """Whole documents within the limit, one after the other; each window predicts its next 32 tokens."""
    model = hf_model("llama").eval()
    found = {}
    for language, documents in heldout.items():
        stream: list[int] = []
        for document in documents:
            if 3 * (len(stream) + len(document)) > LIMIT:
                break
            stream += document
        windows = [stream[at : at + SEQUENCE + 1] for at in range(0, len(stream) - 1, SEQUENCE)]
        assert len(windows) % 4 and len(windows[-1]) < SEQUENCE + 1, "windows and batches need padding"
        total, counted = 0.0, 0
        for window in windows:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([window[:-1]])).logits[0]
            labels = torch.tensor(window[1:])
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != BOS]
            total, counted = total + float(losses.sum()), counted + len(losses)
        found[f"validation/loss/{language}"] = total / counted
        found[f"validation/bits_per_byte/{language}"] = total / math.log(2) / (3 * len(stream))
    return found


@pytest.mark.parametrize(
    "parallel",
    [{}, {"tensor": 2, "data": 2}, {"pipeline": 2, "virtual_pipeline": 2}, {"context": 2}],
    ids=["alone", "tp2-dp2", "vpp", "cp2"],
)
def test_same_as_transformers(
    case: Path, expected: dict[str, float], tmp_path: Path, parallel: dict[str, int]
) -> None:
    """Of the weights of the start: the learning rate is too small to move them."""
    train(
        case,
        tmp_path,
        parallel=parallel,
        optimizer={"learning_rate": 1e-30, "minimum_learning_rate": 0.0, "weight_decay": 0.0},
        schedule={"kind": "constant"},
        validation_interval_steps=1,
        validation_bytes_per_language=LIMIT,
    )
    (line,) = (line for line in lines(tmp_path) if "validation/loss/en" in line)
    assert {key: value for key, value in line.items() if "/" in key} == pytest.approx(expected, abs=1e-5)
