"""Training is the same under every layout, and the same as a plain transformers loop."""

from pathlib import Path

import pytest
from training_case import (
    EOD,
    GLOBAL_BATCH,
    SEQUENCE,
    STEPS,
    VOCABULARY,
    curve,
    hf_model,
    train,
    write_graft,
    write_tokens,
)

LAYOUTS = {
    "tp2": {"parallel": {"tensor": 2}},
    "pp2": {"parallel": {"pipeline": 2}},
    "tp2-pp2": {"parallel": {"tensor": 2, "pipeline": 2}},
    "tp2-pp2-sp": {"parallel": {"tensor": 2, "pipeline": 2, "sequence": True}},
    "vpp": {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
    "dp2": {"parallel": {"data": 2}},
    "cp2": {"parallel": {"context": 2}},
    "recompute": {"recompute": "full"},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory)
    return directory


@pytest.fixture(scope="module")
def alone(case: Path) -> Path:
    train(case, case / "alone")
    return case / "alone"


def test_learns(alone: Path) -> None:
    losses = curve(alone)
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_curve_under_every_layout(case: Path, alone: Path, layout: str) -> None:
    train(case, case / layout, **LAYOUTS[layout])
    assert curve(case / layout) == pytest.approx(curve(alone), abs=1e-5)
    norms = curve(alone, "train/grad_norm")
    assert curve(case / layout, "train/grad_norm") == pytest.approx(norms, rel=1e-5, abs=1e-5)


def reference_losses(model, samples, learning_rates, **loop):
    """A plain loop: transformers' model, torch's AdamW, clipping; norms and biases do not decay."""
    import torch

    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses = []
    for step, rate in enumerate(learning_rates):
        tokens, labels = (
            torch.stack(part)
            for part in zip(*samples[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH], strict=True)
        )
        logits = model(input_ids=tokens, **(loop["inputs"](tokens) if loop else {})).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), labels.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def samples_in_order(case: Path, output: Path):
    """The samples as Megatron's dataset gives them, in a process where it may be patched in."""
    import json
    import subprocess
    import sys

    script = (
        "import json, sys; from pathlib import Path\n"
        "from pretrain.megatron_cpu import import_megatron; import_megatron()\n"
        "import torch.distributed as group\n"
        "group.init_process_group('gloo', store=group.HashStore(), rank=0, world_size=1)\n"
        "from pretrain.data import TrainingData; from experiment.mixture import Mixture\n"
        "tokens = Path(sys.argv[1])\n"
        f"data = TrainingData(Mixture.load(tokens), tokens, Path(sys.argv[2]), sequence_length={SEQUENCE},"
        f" samples={STEPS * GLOBAL_BATCH}, seed=5)\n"
        f"rows = [[part.tolist() for part in data.sample(n)[:2]] for n in range({STEPS * GLOBAL_BATCH})]\n"
        "print(json.dumps(rows))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(case / "tokens"), str(output)],
        capture_output=True,
        text=True,
        check=True,
    )
    import torch

    return [tuple(torch.tensor(part) for part in row) for row in json.loads(result.stdout.splitlines()[-1])]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "qwen2", "llama3-rope"])
def test_same_curve_as_transformers(tmp_path: Path, family: str) -> None:
    overrides = {}
    if family == "llama3-rope":
        family = "llama"
        overrides = {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 50000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        }
    write_graft(tmp_path, family, **overrides)
    write_tokens(tmp_path)
    train(tmp_path, tmp_path / "out")
    model = hf_model(family, **overrides)
    samples = samples_in_order(tmp_path, tmp_path / "samples")
    expected = reference_losses(model, samples, curve(tmp_path / "out", "train/learning_rate"))
    assert curve(tmp_path / "out") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("context", [1, 2])
def test_documents_do_not_see_each_other(tmp_path: Path, context: int) -> None:
    """Resets against transformers fed with an explicit mask and positions."""
    import torch

    write_graft(tmp_path)
    write_tokens(tmp_path)
    train(
        tmp_path,
        tmp_path / "out",
        reset_position_ids=True,
        reset_attention_mask=True,
        parallel={"context": context},
    )
    samples = samples_in_order(tmp_path, tmp_path / "samples")

    def inputs(tokens):
        documents = (tokens == EOD).cumsum(1) - (tokens == EOD).long()
        allowed = (documents[:, :, None] == documents[:, None, :]) & torch.ones(
            SEQUENCE, SEQUENCE
        ).tril().bool()
        positions = torch.zeros_like(tokens)
        for row in range(len(tokens)):
            count = 0
            for column in range(SEQUENCE):
                positions[row, column] = count
                count = 0 if tokens[row, column] == EOD else count + 1
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        return {"attention_mask": mask[:, None], "position_ids": positions}

    rates = curve(tmp_path / "out", "train/learning_rate")
    expected = reference_losses(hf_model("llama"), samples, rates, inputs=inputs)
    assert curve(tmp_path / "out") == pytest.approx(expected, abs=1e-4)
