"""How fast a device multiplies."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

GPU_WIDTH, CPU_WIDTH = 8192, 512
"""Width of the square product that measures; 8192 is what published figures take."""
_MEASUREMENTS = 10


def product_flops(device: Any, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products, the best of ten: 2 n^3 / seconds.

    Raises:
        ArithmeticError: the same product gave other bits the second time.
    """
    gpu = torch.device(device).type == "cuda"
    size = GPU_WIDTH if gpu else CPU_WIDTH
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    first, best = torch.mm(left, right), math.inf
    for _ in range(_MEASUREMENTS):
        if gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        again = torch.mm(left, right)
        if gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    if not torch.equal(first, again):
        raise ArithmeticError(f"a matrix product on {device} gives other bits the second time")
    return 2.0 * size**3 / best
