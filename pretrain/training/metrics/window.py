"""The numbers of a run: what is summed up for a log line, and what a line is to the trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.tracking.tracker import Point
from tsugiki.pretrain.planning.flops import GPUS

# Board names as CUDA reports them; other boards of the same chips have other clocks and are not in the table.
_BOARDS = {"A100": "a100-80gb", "H100": "h100", "H200": "h200", "B200": "b200", "L40S": "l40s"}
_OTHER_BOARDS = ("PCIe", "NVL", "GB200")
_NOT_METRICS = ("step", "consumed_tokens", "seconds", "phase", "event", "reason")


def tokens_per_byte(mixture: Mixture) -> float:
    """Training tokens per byte of text, sources weighted by their share of the mixture.

    A nat per token is (tokens / bytes) / ln 2 bits per byte.
    """
    bytes_per_token = sum(source.share * source.bytes / max(source.tokens, 1) for source in mixture.sources)
    return 1.0 / bytes_per_token if bytes_per_token else math.nan


def data_sheet_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name; None for one that is not in the table of `tsugiki plan`."""
    if name.startswith("NVIDIA A100") or not any(board in name for board in _OTHER_BOARDS):
        for part, board in _BOARDS.items():
            if part in name:
                return GPUS[board].peak_flops
    return None


class LogWindow:
    """Sums since the last log line.

    Args:
        total: sum of losses in nats.
        tokens: tokens that count in the loss, or pairs.
        norm: gradient norm of the last step.
        steps: steps; those before a restart count in the loss and not in the throughput.
        measures: sums over pairs by name; empty where the objective is the next token.
    """

    def __init__(
        self,
        total: float = 0.0,
        tokens: float = 0.0,
        norm: float = 0.0,
        steps: int = 0,
        measures: Mapping[str, float] | None = None,
    ) -> None:
        self.total, self.tokens, self.norm, self.steps = total, tokens, norm, steps
        self.measures = dict(measures or {})
        self.timed_steps = 0
        self._before = 0.0
        self.begin()

    def begin(self) -> None:
        """The next step begins now."""
        self._start = time.monotonic()

    def sums(self) -> dict[str, Any]:
        """What a checkpoint keeps: the arguments of another one that goes on from here."""
        sums = {"total": self.total, "tokens": self.tokens, "norm": self.norm, "steps": self.steps}
        return {**sums, "measures": self.measures} if self.measures else sums

    def add(self, loss: float, norm: float, tokens: float, measures: Mapping[str, float]) -> None:
        """One step."""
        for name, value in measures.items():
            self.measures[name] = self.measures.get(name, 0.0) + value
        self.total += loss * tokens
        self.tokens += tokens
        self.norm = norm
        self.steps += 1
        self.timed_steps += 1
        now = time.monotonic()
        self._before += now - self._start
        self._start = now

    def exclude(self, seconds: float) -> None:
        """Do not count time spent otherwise since the last step (validation, checkpoint)."""
        self._start += seconds

    def seconds(self) -> float:
        """Time spent in steps."""
        return self._before

    def loss(self) -> float:
        """Mean over tokens, or pairs."""
        return self.total / max(self.tokens, 1.0)


def point_of(line: Mapping[str, Any]) -> Point:
    """A line of metrics.jsonl as the trackers take it."""
    return Point(int(line["step"]), int(line["seconds"] * 1000), numbers_of(line))


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line, without its bookkeeping and without what is not finite."""
    return {
        key: float(value)
        for key, value in line.items()
        if key not in _NOT_METRICS and isinstance(value, (int, float)) and math.isfinite(value)
    }
