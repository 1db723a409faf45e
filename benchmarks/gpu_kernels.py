"""Kernels of train_gpu.py alone: the plain and the fused way, forward and backward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def kernels(device: str, shape: str, vocabularies: list[int]) -> list[dict[str, Any]]:
    """Milliseconds and memory of output layer + loss, and of the norm, for every vocabulary."""
    import torch
    from train_gpu import SHAPES

    from tsugiki.pretrain.model.fused_loss import linear_cross_entropy
    from tsugiki.pretrain.model.kernels import compiled, rms_norm
    from tsugiki.pretrain.model.loss import vocabulary_parallel_loss

    fast = device == "cuda"
    dtype = torch.bfloat16 if fast else torch.float32
    width, tokens = SHAPES[shape]["hidden_size"], SHAPES[shape]["sequence"]
    hidden = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
    results = []
    for size in vocabularies:
        weight = torch.randn(size, width, device=device, dtype=dtype) * 0.02
        parameter = torch.nn.Parameter(weight)
        parameter.main_grad = torch.zeros(size, width, device=device)  # type: ignore[attr-defined]
        labels = torch.randint(0, size, (tokens,), device=device)

        def plain(weight: Any = parameter, labels: Any = labels, size: int = size) -> None:
            logits = (hidden @ weight.t())[:, None]
            objective, _ = vocabulary_parallel_loss(logits, labels[:, None], first=0, vocabulary_size=size)
            objective.sum().backward()
            weight.main_grad.add_(weight.grad)
            weight.grad = None

        def fused(weight: Any = parameter, labels: Any = labels, size: int = size, **how: Any) -> None:
            objective, _ = linear_cross_entropy(
                hidden, weight, labels, first=0, vocabulary_size=size, compile=fast, accumulate=True, **how
            )
            objective.sum().backward()
            weight.grad = None

        products = 6 * tokens * width * size
        for name, function in (
            ("loss, plain", plain),
            ("loss, fused", fused),
            ("loss, fused, products made again", lambda fused=fused: fused(keep=False)),
        ):
            row = timed(name, function, device)
            row |= {"vocabulary": size, "tflops": products / row["milliseconds"] / 1e9}
            results.append(row)
    gain = torch.rand(width, device=device, dtype=dtype, requires_grad=True)
    for name, norm in (("norm, plain", rms_norm), ("norm, compiled", compiled(rms_norm))):
        if norm is rms_norm or fast:
            results.append(timed(name, lambda norm=norm: norm(hidden, gain, 1e-5).sum().backward(), device))
    for row in results:
        print(
            "  ".join(
                f"{key} {value:,.3f}" if isinstance(value, float) else str(value)
                for key, value in row.items()
            )
        )
    return results


def timed(name: str, function: Callable[[], None], device: str) -> dict[str, Any]:
    """Median of ten after three, and the memory beyond what was held before."""
    import torch
    from train_gpu import synchronize

    for _ in range(3):
        function()
    synchronize(device)
    before = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = []
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    extra = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    return {"kernel": name, "milliseconds": 1e3 * statistics.median(times), "extra_bytes": extra}
