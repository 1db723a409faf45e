"""Losses, log-probabilities and gradients of TRL on a tiny model and eight pairs, for the tests of preference tuning.

    python benchmarks/preference_trl.py > tests/fixtures/preference/trl.json

Needs trl (the file was made with 1.16) beside transformers and torch; nothing else here does. The model's weights and
the pairs are formulas, so that no random generator has to be the same.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch

VOCABULARY, BOS, EOD = 101, 1, 2
CASES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo", "preference": {"beta": 0.3}},
    "ipo": {"objective": "ipo", "preference": {"beta": 0.2}},
    "dpo_length_normalised": {"objective": "dpo_length_normalised", "preference": {"beta": 5.0}},
    "dpo_length_regularised": {
        "objective": "dpo_length_regularised",
        "preference": {"beta": 0.3, "length_weight": 0.05},
    },
    "simpo": {"objective": "simpo", "preference": {"beta": 2.5, "target_margin": 0.75}},
}
_TRL = {
    "dpo": "sigmoid",
    "ipo": "ipo",
    "dpo_length_normalised": "sigmoid_norm",
    "dpo_length_regularised": "sigmoid",
}


def set_weights(model: Any, phase: float) -> None:
    """Weights that are a formula; norms stay."""
    with torch.no_grad():
        for number, (_, weight) in enumerate(sorted(model.named_parameters())):
            if weight.dim() > 1:
                places = torch.arange(weight.numel(), dtype=torch.float64)
                values = torch.sin(places * (1.7 + 0.013 * number) + number + phase) / math.sqrt(
                    weight.shape[1]
                )
                weight.copy_(values.view_as(weight).float())


def pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected answer of each pair: ids."""
    found = []
    for number in range(8):
        prompt = [BOS, *((7 * number + 3 * place) % 97 + 3 for place in range(3 + number % 3))]
        answers = [
            [
                *(
                    (5 * number + (2 + 3 * side) * place + side) % 97 + 3
                    for place in range(2 + (number + side) % 4)
                ),
                EOD,
            ]
            for side in (0, 1)
        ]
        found.append((prompt, *answers))
    return found


def inputs() -> dict[str, torch.Tensor]:
    """As TRL's collator makes them: the chosen ones, then the rejected ones, padded."""
    rows = [(prompt, chosen) for prompt, chosen, _ in pairs()] + [
        (prompt, other) for prompt, _, other in pairs()
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, attention, completion = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        attention[row, :end] = 1
        completion[row, len(prompt) : end] = 1
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def tiny_model(phase: float) -> Any:
    """The model of tests/support/training_case.py with weights that are a formula."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=BOS, eos_token_id=EOD,
        pad_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    set_weights(model, phase)
    return model


def with_trl(case: dict[str, Any]) -> dict[str, Any]:
    """What TRL says of the pairs."""
    from accelerate import Accelerator
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    policy, reference = tiny_model(0.0), tiny_model(1.0)
    for model in (policy, reference):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    numbers = {"beta": 0.1, "length_weight": 0.0, "target_margin": 0.0, **case["preference"]}
    batch = inputs()
    lengths = torch.stack(batch["completion_mask"].sum(dim=1).chunk(2), dim=1)
    seen = {}

    def recorded(**arguments: Any) -> Any:
        outputs = policy(**arguments)
        outputs.log_probs.retain_grad()
        seen["log_probs"] = outputs.log_probs
        return outputs

    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        arguments = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        found = reference(**arguments, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)
    compared = torch.stack(found.chunk(2), dim=1)
    if case["objective"] == "simpo":
        loss = _simpo(recorded, batch, labels, lengths, numbers)
    else:
        # alpha n in the sigmoid is a reference whose answers are that much less likely: TRL has no loss of its own.
        moved = compared - numbers["length_weight"] * lengths / numbers["beta"]
        trainer = SimpleNamespace(
            model=policy, accelerator=Accelerator(cpu=True), aux_loss_enabled=False, ld_alpha=None,
            precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[_TRL[case["objective"]]],
            loss_weights=[1.0], beta=numbers["beta"], label_smoothing=0.0, use_weighting=False,
            _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        )  # fmt: skip
        given = {**batch, "ref_chosen_logps": moved[:, 0], "ref_rejected_logps": moved[:, 1]}
        loss = DPOTrainer._compute_loss(trainer, recorded, given, False)
    loss.backward()
    norm = math.sqrt(sum(float(item.grad.double().square().sum()) for item in policy.parameters()))
    # Every token of an answer has the answer's gradient.
    gradient = seen["log_probs"].grad.gather(1, batch["completion_mask"].argmax(dim=1, keepdim=True) - 1)
    return {
        "loss": float(loss.detach()),
        "grad_norm": norm,
        "policy": torch.stack(seen["log_probs"].detach().sum(dim=1).chunk(2), dim=1).tolist(),
        "reference": compared.tolist(),
        "lengths": lengths.tolist(),
        "gradient": torch.stack(gradient.flatten().chunk(2), dim=1).tolist(),
    }


def _simpo(recorded: Any, batch: Any, labels: Any, lengths: Any, numbers: Any) -> Any:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = SimpleNamespace(
        alpha=0.0, beta=numbers["beta"], simpo_gamma=numbers["target_margin"], loss_type="simpo",
        label_smoothing=0.0, accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    arguments = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    means = recorded(**arguments, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)
    means = means / torch.cat(lengths.unbind(dim=1))
    return CPOTrainer.cpo_loss(trainer, *means.chunk(2))[0].mean()


def main() -> None:
    """Print the table."""
    import trl

    table = {name: with_trl(case) for name, case in CASES.items()}
    json.dump({"trl": trl.__version__, "torch": torch.__version__, "cases": table}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
