"""How far a run has come: what a checkpoint keeps beside weights and moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tsugiki.pretrain.config import AnomalyConfig
from tsugiki.pretrain.training.guard import LossGuard
from tsugiki.pretrain.training.metrics.window import LogWindow


class Progress:
    """Step, skipped batches, recent losses and the log window.

    Args:
        config: the anomalies section.
    """

    def __init__(self, config: AnomalyConfig) -> None:
        self.step = 0
        """Steps done."""
        self.skipped: set[int] = set()
        """Batches, counted from 0, that no update was made for."""
        self.anomalies = 0
        self.guard = LossGuard(config)
        self.window = LogWindow()

    def restore(self, common: Mapping[str, Any]) -> None:
        """Go on from what :meth:`common` gave; from the start when that is empty."""
        if not common:
            return
        self.step = common["iteration"]
        self.skipped = set(common["skipped_batches"])
        self.anomalies = common["anomalies"]
        self.guard.recent.extend(common["recent_losses"])
        self.window = LogWindow(**common["interval"])
        torch.set_rng_state(common["rng_state"])

    def common(self) -> dict[str, Any]:
        """What the next process needs to go on from here, under names that checkpoints have had from the first."""
        return {
            "iteration": self.step,
            "rng_state": torch.get_rng_state(),
            "skipped_batches": sorted(self.skipped),
            "anomalies": self.anomalies,
            "recent_losses": list(self.guard.recent),
            "interval": self.window.sums(),
        }
