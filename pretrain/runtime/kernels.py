"""Which of torch's kernels this process may use."""

from __future__ import annotations


def make_deterministic() -> None:
    """The same bits every time in this process; an operation that has no such kernel raises RuntimeError."""
    import torch._inductor.config

    torch.use_deterministic_algorithms(True)
    torch._inductor.config.deterministic = True  # no choice of kernels by measured time
    torch.backends.cudnn.benchmark = False
