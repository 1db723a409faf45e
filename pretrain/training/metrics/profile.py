"""`train.profile`: a trace of some steps that Chrome (chrome://tracing) and Perfetto (ui.perfetto.dev) open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from tsugiki.pretrain.profile_config import ProfileConfig
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.training.metrics.stragglers import StepClock

PROFILES_NAME = "profiles"


class Profile:
    """Records the configured steps of this rank; outside of them it compares two numbers a step.

    Args:
        config: which steps of which ranks; None = none.
        rank: of this process.
        folder: where the trace goes.
        clock: whose ranges are written into the trace, beside a range `step N` for each step.
    """

    def __init__(self, config: ProfileConfig | None, rank: int, folder: Path, clock: StepClock) -> None:
        self._steps = None if config is None or rank not in config.ranks else config.steps
        self._rank, self._folder, self._clock = rank, folder, clock
        self._profiler: Any = None
        self._range: Any = None

    def begin(self, step: int) -> None:
        """A step begins, counted from 1 as in the log."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            return
        if self._profiler is None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu() else [])]
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
            self._clock.ranges = True
        self._range = torch.profiler.record_function(f"step {step}")
        self._range.__enter__()

    def end(self, step: int) -> Path | None:
        """A step is over with all that follows it; the trace once it is written."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        if self._profiler is None or self._steps is None or step < self._steps[1]:
            return None
        return self.close()

    def close(self) -> Path | None:
        """Write what was recorded, if anything was; the training may have ended before the last step asked for."""
        if self._profiler is None or self._steps is None:
            return None
        profiler, steps = self._profiler, self._steps
        self._profiler = self._steps = None
        self._clock.ranges = False
        profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"steps-{steps[0]}-{steps[1]}-rank-{self._rank}.json.gz"
        profiler.export_chrome_trace(str(path))
        return path
