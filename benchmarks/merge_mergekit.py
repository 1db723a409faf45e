"""What mergekit makes of three small tensors, for the tests of `tsugiki merge`.

    python benchmarks/merge_mergekit.py > tests/fixtures/merging/mergekit.json

Needs mergekit (the file was made with 0.1.5, whose methods take groups of tensors) and torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

SHAPE = (6, 5)
CASES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weights": [0.7, -0.4], "densities": [1.0, 1.0], "normalise": False},
    "task_arithmetic_normalised": {"weights": [0.7, 0.6], "densities": [1.0, 1.0], "normalise": True},
    "ties": {"weights": [0.7, 0.5], "densities": [0.4, 0.6], "normalise": True},
    "ties_sum": {"weights": [1.0, 0.5], "densities": [0.5, 1.0], "normalise": False},
    "dare_ties": {"weights": [0.7, 0.5], "densities": [1.0, 1.0], "normalise": False},
}


def tensors() -> list[torch.Tensor]:
    """Base and two models: formulas."""
    places = torch.arange(SHAPE[0] * SHAPE[1], dtype=torch.float64).view(SHAPE)
    return [torch.sin(places * (1.3 + 0.7 * number) + number).float() for number in range(3)]


def with_mergekit(name: str, case: dict[str, Any]) -> list[list[float]]:
    """The merged tensor."""
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

    wanted = name.removesuffix("_normalised").removesuffix("_sum")
    method = registry.get(wanted)
    group = TensorGroup.from_tensors(tensors(), base_index=0)
    weights, densities = (dict(zip((1, 2), case[key], strict=True)) for key in ("weights", "densities"))
    parameters = {
        "weight": weights, "density": densities, "normalize": case["normalise"], "rescale": False,
        "int8_mask": False, "lambda": 1.0,
    }  # fmt: skip
    return method.merge_group(group, **parameters).tolist()


def main() -> None:
    """Print the table."""
    import importlib.metadata

    table = {name: with_mergekit(name, case) for name, case in CASES.items()}
    json.dump({"mergekit": importlib.metadata.version("mergekit"), "cases": table}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
