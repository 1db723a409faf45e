"""The loss curve against transformers and torch's AdamW, for what the configuration can ask of training."""

import itertools
from pathlib import Path

import pytest
import torch
from training_case import (
    BASE_ROWS,
    EOD,
    GLOBAL_BATCH,
    SEQUENCE,
    STEPS,
    VOCABULARY,
    checkpoint_tensor,
    curve,
    hf_model,
    lines,
    train,
    write_graft,
    write_tokens,
)
from training_reference import batch_of, rates_of, reference_losses, samples_in_order

ROPE = {
    "llama3-rope": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "linear-rope": {"rope_type": "linear", "factor": 4.0},
    "yarn-rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "qwen2", *ROPE])
def test_same_curve_as_transformers(tmp_path: Path, family: str) -> None:
    """Mistral with a window of 12 of 32 tokens; Gemma tied, GeGLU, heads wider than the model, norm 1 + w."""
    overrides = {}
    if family in ROPE:
        family, overrides = "llama", {"rope_parameters": {"rope_theta": 50000.0, **ROPE[family]}}
    write_graft(tmp_path, family, **overrides)
    write_tokens(tmp_path)
    train(tmp_path, tmp_path / "out")
    samples = samples_in_order(tmp_path, tmp_path / "samples")
    expected = reference_losses(hf_model(family, **overrides), samples, rates_of(lines(tmp_path / "out")))
    assert len(expected) == STEPS
    assert curve(tmp_path / "out") == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.fixture(scope="module")
def samples(case: Path) -> list[tuple[torch.Tensor, ...]]:
    return samples_in_order(case, case / "samples")


@pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "data": 2}])
def test_bf16(
    case: Path, samples: list[tuple[torch.Tensor, ...]], tmp_path: Path, parallel: dict[str, int]
) -> None:
    """Against a bf16 model with an fp32 AdamW. bf16 keeps 8 bits: 0.4 % of every activation, 0.02 of a loss."""
    train(case, tmp_path, precision="bf16", parallel=parallel)
    losses = curve(tmp_path)
    expected = reference_losses(hf_model("llama").to(torch.bfloat16), samples, rates_of(lines(tmp_path)))
    assert losses == pytest.approx(expected, abs=2e-2)
    exact = reference_losses(hf_model("llama"), samples, rates_of(lines(tmp_path)))
    assert losses != pytest.approx(exact, abs=1e-4), "this must not have been fp32"


@pytest.mark.parametrize("layout", [{}, {"tensor": 2, "data": 2}])
@pytest.mark.parametrize("distributed", [True, False])
def test_new_rows_learn_at_their_own_rate(
    case: Path, tmp_path: Path, layout: dict[str, int], distributed: bool
) -> None:
    """One step by hand: w - m lr (m1 / (1 - b1) / (sqrt(m2 / (1 - b2)) + eps) + decay w), m = 3 for new rows."""
    rate, decay, multiplier = 1e-2, 0.1, 3.0
    one = tmp_path / "case"
    write_graft(one)
    write_tokens(one, steps=1)
    train(
        one,
        tmp_path / "out",
        parallel=layout,
        schedule={"kind": "constant"},
        optimizer={
            "learning_rate": rate,
            "weight_decay": decay,
            "minimum_learning_rate": 0,
            "distributed": distributed,
            "new_rows_learning_rate_multiplier": multiplier,
        },
    )
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        before = checkpoint_tensor(one / "graft" / "checkpoint", name)
        step = tmp_path / "out" / "checkpoints" / "iter_0000001"
        after = checkpoint_tensor(step, name)
        first, second = (
            checkpoint_tensor(step, f"optimizer.state.{kind}.{name}") for kind in ("exp_avg", "exp_avg_sq")
        )
        update = rate * (first / 0.1 / ((second / 0.05).sqrt() + 1e-8) + decay * before)
        factor = torch.ones(VOCABULARY, 1)
        factor[BASE_ROWS:] = multiplier
        torch.testing.assert_close(after - before, -factor * update, rtol=1e-4, atol=1e-6)
        assert (after - before)[BASE_ROWS:].abs().mean() > 2 * (after - before)[:BASE_ROWS].abs().mean()


def separate_documents(tokens: torch.Tensor) -> list[list[slice]]:
    """Where the documents of every row are; one ends with its end-of-document token."""
    rows = []
    for row in tokens:
        ends = [int(place) + 1 for place in (row == EOD).nonzero()]
        edges = [0, *ends, *([len(row)] if not ends or ends[-1] != len(row) else [])]
        rows.append([slice(start, end) for start, end in itertools.pairwise(edges)])
    return rows


@pytest.mark.parametrize("parallel", [{}, {"context": 2}, {"tensor": 2, "sequence": True}])
def test_documents_as_if_they_stood_alone(
    case: Path, samples: list[tuple[torch.Tensor, ...]], tmp_path: Path, parallel: dict[str, object]
) -> None:
    """Both resets: the loss is that of every document given to transformers by itself."""
    train(case, tmp_path, reset_position_ids=True, reset_attention_mask=True, parallel=parallel)
    model = hf_model("llama")
    tokens, labels, _ = batch_of(samples, 0)
    total, documents = 0.0, 0
    with torch.no_grad():
        for row, parts in enumerate(separate_documents(tokens)):
            for part in parts:
                logits = model(input_ids=tokens[row : row + 1, part]).logits[0]
                total += float(torch.nn.functional.cross_entropy(logits, labels[row, part], reduction="sum"))
                documents += 1
    assert documents > GLOBAL_BATCH, "some row holds several"
    assert curve(tmp_path)[0] == pytest.approx(total / tokens.numel(), abs=1e-5)

    def inputs(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        allowed = torch.zeros(len(tokens), SEQUENCE, SEQUENCE, dtype=torch.bool)
        positions = torch.zeros_like(tokens)
        for row, parts in enumerate(separate_documents(tokens)):
            for part in parts:
                length = part.stop - part.start
                allowed[row, part, part] = torch.ones(length, length).tril().bool()
                positions[row, part] = torch.arange(length)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        return {"attention_mask": mask[:, None], "position_ids": positions}

    expected = reference_losses(model, samples, rates_of(lines(tmp_path)), inputs=inputs)
    assert curve(tmp_path) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("parallel", [{}, {"data": 2, "context": 2}])
def test_masked_labels_do_not_count(tmp_path: Path, parallel: dict[str, int]) -> None:
    """Every second document is only read, as the prompts of a chat; nor does what follows a document count.

    Ranks see unlike numbers of counting tokens: the mean is over those of the global batch.
    """

    def mask_half(documents: list[list[int]]) -> list[list[int]]:
        return [
            [-1 - token for token in document] if number % 2 else document
            for number, document in enumerate(documents)
        ]

    write_graft(tmp_path)
    write_tokens(tmp_path, change=mask_half, signed=True)
    train(tmp_path, tmp_path / "out", mask_end_of_document=True, parallel=parallel)
    samples = samples_in_order(tmp_path, tmp_path / "samples")
    masks = torch.stack([mask for _, _, mask in samples])
    assert 0.2 < masks.mean() < 0.8

    def counts(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask * (tokens != EOD)

    expected = reference_losses(hf_model("llama"), samples, rates_of(lines(tmp_path / "out")), counts=counts)
    assert curve(tmp_path / "out") == pytest.approx(expected, abs=1e-4)


def test_z_loss(case: Path, samples: list[tuple[torch.Tensor, ...]], tmp_path: Path) -> None:
    """The gradient of the first step: cross entropy plus c times the mean squared log partition function."""
    train(case, tmp_path, z_loss=1e-2, parallel={"tensor": 2})
    model = hf_model("llama")
    tokens, labels, _ = batch_of(samples, 0)
    logits = model(input_ids=tokens).logits.reshape(-1, VOCABULARY)
    entropy = torch.nn.functional.cross_entropy(logits, labels.reshape(-1))
    (entropy + 1e-2 * logits.logsumexp(-1).square().mean()).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    assert curve(tmp_path, "train/grad_norm")[0] == pytest.approx(float(norm), rel=1e-4)
    assert curve(tmp_path)[0] == pytest.approx(float(entropy.detach()), abs=1e-5)
