"""What training is compared with: transformers' models, torch's AdamW, a plain loop."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from training_case import GLOBAL_BATCH, SEQUENCE, STEPS, VOCABULARY, server

_SAMPLES = """
import json
from pathlib import Path
import torch.distributed as group
group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
from tsugiki.pretrain.training.samples.batches import TrainingData
from tsugiki.experiment.artefacts.mixture import Mixture
data = TrainingData(
    Mixture.load(tokens), tokens, output, sequence_length=length, samples=count, seed=5
)
rows = [[part.tolist() for part in (s.tokens, s.labels, s.loss_mask)] for s in map(data.sample, range(count))]
(output / "samples.json").write_text(json.dumps(rows))
"""


def samples_in_order(case: Path, output: Path, steps: int = STEPS) -> list[tuple[torch.Tensor, ...]]:
    """Tokens, labels and loss mask of every sample, in a process where Megatron may be patched in."""
    code = (
        f"from pathlib import Path\ntokens, output = Path({str(case / 'tokens')!r}), Path({str(output)!r})\n"
        f"count, length = {steps * GLOBAL_BATCH}, {SEQUENCE}\n{_SAMPLES}"
    )
    output.mkdir(parents=True)
    server().execute(output / "console.log", code)
    rows = json.loads((output / "samples.json").read_text())
    return [tuple(torch.tensor(part) for part in row) for row in rows]


def batch_of(samples: Sequence[tuple[torch.Tensor, ...]], step: int) -> tuple[torch.Tensor, ...]:
    """Tokens, labels and mask [GLOBAL_BATCH, SEQUENCE] of a step, counted from 0."""
    rows = samples[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


def reference_losses(
    model: Any,
    samples: Sequence[tuple[torch.Tensor, ...]],
    learning_rates: Mapping[int, float],
    *,
    inputs: Callable[[torch.Tensor], dict[str, torch.Tensor]] = lambda tokens: {},
    counts: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    rollbacks: Mapping[int, int] | None = None,
) -> list[float]:
    """Losses of the steps in `learning_rates`, counted from 0: clipping, AdamW; norms and biases do not decay.

    Args:
        model: transformers model. In bf16, AdamW moves an fp32 copy, rounded to bf16 after every step.
        samples: from samples_in_order.
        learning_rates: of the steps to do; the others are left out.
        inputs: further arguments of the model from the tokens.
        counts: 1.0 where a prediction counts, from tokens and loss mask; None = everywhere.
        rollbacks: steps before which weights and moments of an earlier step come back.
    """
    masters = [parameter.detach().float().clone() for parameter in model.parameters()]
    for master in masters:
        master.requires_grad_()
    optimizer = torch.optim.AdamW(
        [
            {"params": [item for item in masters if item.ndim > 1], "weight_decay": 0.1},
            {"params": [item for item in masters if item.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    kept: dict[int, Any] = {}
    losses = []
    for step in range(max(learning_rates) + 1):
        kept[step] = copy.deepcopy((masters, optimizer.state_dict()))
        if rollbacks and step in rollbacks:
            values, state = kept[rollbacks[step]]
            with torch.no_grad():
                for master, value in zip(masters, values, strict=True):
                    master.copy_(value)
            optimizer.load_state_dict(copy.deepcopy(state))
        if step not in learning_rates:
            continue
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters, strict=True):
                parameter.copy_(master)
        model.zero_grad()
        tokens, labels, mask = batch_of(samples, step)
        weight = torch.ones_like(mask) if counts is None else counts(tokens, mask)
        logits = model(input_ids=tokens, **inputs(tokens)).logits.float()
        every = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCABULARY), labels.reshape(-1), reduction="none"
        )
        loss = (every * weight.reshape(-1)).sum() / weight.sum()
        loss.backward()
        for parameter, master in zip(model.parameters(), masters, strict=True):
            master.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rates[step]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def rates_of(lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Learning rates by step, counted from 0, from metrics.jsonl with one line for every step."""
    return {line["step"] - 1: line["train/learning_rate"] for line in lines if "train/learning_rate" in line}
