"""The other side of train_gpu.py: transformers' Trainer with SDPA attention on random tokens."""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any


def train(spec: Any, sequence: int, options: argparse.Namespace) -> list[float]:
    """Seconds of every step."""
    import torch
    from train_gpu import synchronize
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    config = LlamaConfig(
        vocab_size=spec.vocabulary_size, hidden_size=spec.hidden_size, intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads,
        max_position_embeddings=sequence, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    pure = options.side == "trainer-pure-bf16"
    with torch.device(options.device):
        model = LlamaForCausalLM(config).to(torch.bfloat16 if pure else torch.float32)
    rows = options.micro_batch * options.micro_batches
    tokens = torch.randint(
        0, spec.vocabulary_size, (rows, sequence), generator=torch.Generator().manual_seed(0)
    )
    data = [{"input_ids": row, "labels": row} for row in tokens] * options.steps
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: object, **__: object) -> None:
            synchronize(options.device)
            times.append(-time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            synchronize(options.device)
            times[-1] += time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder, per_device_train_batch_size=options.micro_batch,
                gradient_accumulation_steps=options.micro_batches, max_steps=options.steps, report_to=[],
                use_cpu=options.device == "cpu", bf16=options.device == "cuda" and not pure,
                optim="adamw_torch_fused", adam_beta2=0.95, weight_decay=0.1, logging_steps=10**6,
                save_strategy="no", disable_tqdm=True, dataloader_pin_memory=options.device == "cuda",
                torch_compile=options.side != "trainer" and options.device == "cuda",
            ),
            train_dataset=data,
            callbacks=[Clock()],
        ).train()  # fmt: skip
    return times
