"""Ranks that work more slowly than those with the same share of the model.

All ranks of a job step equally fast: everyone waits for the slowest. What tells them apart is the time in which a rank
works itself: forward and backward passes without the pipeline's messages and the reduction of gradients, and waiting
for its data. Tensor- and context-parallel ranks wait for each other within a pass, so a slow one is seen as slow ranks
of its node.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state

from tsugiki.pretrain.runtime.megatron_cpu import has_gpu

_OWN_WORK = ("forward-compute", "backward-compute")
"""Megatron's names of the parts of a schedule that no other pipeline stage is waited for in."""
_NAMED_FROM = 2
"""Windows one after another in which a rank is slow before it is named: a single one may be an accident."""


class StepClock:
    """Time that this rank itself works, by Megatron's timers of the schedule; the host never waits for it.

    On a GPU events are put into its stream and read once the step is over. Give it to Megatron as `config.timers`.

    Attributes:
        ranges: write every part of the schedule that Megatron times into a trace, too.
    """

    def __init__(self) -> None:
        self.ranges = False
        self._spans: dict[str, _Span] = {}
        self._events: list[tuple[Any, Any]] = []
        self._spare: list[tuple[Any, Any]] = []
        self._running = 0.0
        self._seconds, self._steps = 0.0, 0

    def __call__(self, name: str, **_options: Any) -> _Span:
        """The span of that name; called by Megatron."""
        if name not in self._spans:
            self._spans[name] = _Span(self, name)
        return self._spans[name]

    def begin(self) -> None:
        """A training step begins: what was timed since the last one (validation) does not count."""
        self._spare += self._events
        self._events, self._running = [], 0.0

    def end(self) -> None:
        """The step's gradients are there, and the host has waited for them."""
        self._seconds += self._running + sum(start.elapsed_time(stop) for start, stop in self._events) / 1000
        self._steps += 1
        self.begin()

    def take(self) -> float:
        """Seconds a step since the last call; 0 without any step."""
        seconds = self._seconds / max(self._steps, 1)
        self._seconds, self._steps = 0.0, 0
        return seconds

    def pair(self) -> tuple[Any, Any]:
        """Two events for a span."""
        if self._spare:
            return self._spare.pop()
        cuda: Any = torch.cuda
        return cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)

    def add(self, span: tuple[Any, Any] | float) -> None:
        """Events around a span, or its seconds."""
        if isinstance(span, float):
            self._running += span
        else:
            self._events.append(span)


class _Span:
    """What Megatron calls a timer."""

    def __init__(self, clock: StepClock, name: str) -> None:
        self._clock, self._name = clock, name
        self._timed = name in _OWN_WORK
        self._start = 0.0
        self._events: tuple[Any, Any] | None = None
        self._range: Any = None

    def start(self, barrier: bool = False) -> None:
        """Never with a barrier, whatever Megatron asks for."""
        if self._clock.ranges:
            self._range = torch.profiler.record_function(self._name)
            self._range.__enter__()
        if not self._timed:
            return
        if has_gpu():
            self._events = self._clock.pair()
            self._events[0].record()
        else:
            self._start = time.perf_counter()

    def stop(self, barrier: bool = False) -> None:
        """Likewise."""
        if self._timed and self._events is not None:
            self._events[1].record()
            self._clock.add(self._events)
        elif self._timed:
            self._clock.add(time.perf_counter() - self._start)
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None


class Place(NamedTuple):
    """Where a rank runs, and which share of the model it has."""

    node: str
    stage: int


class SlowNode(NamedTuple):
    """Slow ranks of one node in a log window.

    Attributes:
        node: its name.
        ranks: that are slow.
        seconds: own time of the slowest, a step.
        times_median: the same as a multiple of the median of the ranks with the same share of the model.
        waits_for_data: most of what it takes longer is waiting for its data.
        windows: one after another in which it was slow, with this one.
    """

    node: str
    ranks: list[int]
    seconds: float
    times_median: float
    waits_for_data: bool
    windows: int

    def __str__(self) -> str:
        """A line for the console."""
        ranks = ", ".join(str(rank) for rank in self.ranks)
        data = ", most of the difference waiting for data" * self.waits_for_data
        return (
            f"slow: rank{'s' * (len(self.ranks) > 1)} {ranks} on {self.node}, {self.times_median:.2f} x the median"
            f" ({self.seconds:.3f} s a step of its own{data}),"
            f" {self.windows} log windows one after another"
        )


class Stragglers:
    """Finds slow ranks, the same on every rank.

    Args:
        places: of every rank.
        factor: slow is more than this multiple of the median; None = nobody is named.
    """

    def __init__(self, places: list[Place], factor: float | None) -> None:
        self._places, self._factor = places, factor
        self._windows = [0] * len(places)
        self._peers: dict[int, list[int]] = defaultdict(list)
        for rank, place in enumerate(places):
            self._peers[place.stage].append(rank)

    @classmethod
    def of_this_job(cls, factor: float | None) -> Stragglers:
        """With the places of all ranks; every rank calls this."""
        own = Place(
            os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            parallel_state.get_pipeline_model_parallel_rank(),
        )
        places: list[Any] = [own] * torch.distributed.get_world_size()
        if len(places) > 1:
            torch.distributed.all_gather_object(places, own)
        return cls(places, factor)

    def judge(self, work: list[float], data: list[float]) -> tuple[dict[str, float], list[SlowNode]]:
        """Metrics of a log window, and the nodes whose ranks have been slow for some time.

        Args:
            work: seconds a step of every rank in its own passes.
            data: likewise waiting for data.
        """
        own = [passes + waiting for passes, waiting in zip(work, data, strict=True)]
        medians = {  # the lower one: of two ranks, the slow one is not its own measure
            stage: statistics.median_low(own[rank] for rank in ranks) for stage, ranks in self._peers.items()
        }
        ratios = [own[rank] / max(medians[place.stage], 1e-9) for rank, place in enumerate(self._places)]
        slowest = max(range(len(own)), key=lambda rank: ratios[rank])
        metrics = {
            "ranks/own_seconds_median": statistics.median_low(own),
            "ranks/own_seconds_max": max(own),
            "ranks/slowest": slowest,
            "ranks/slowest_times_median": ratios[slowest],
        }
        by_node: dict[str, list[int]] = defaultdict(list)
        for rank, ratio in enumerate(ratios):
            slow = self._factor is not None and ratio > self._factor
            self._windows[rank] = self._windows[rank] + 1 if slow else 0
            if self._windows[rank] >= _NAMED_FROM:
                by_node[self._places[rank].node].append(rank)
        metrics["ranks/slow"] = sum(len(ranks) for ranks in by_node.values())
        return metrics, [
            self._slow_node(node, ranks, own, ratios, data)
            for node, ranks in sorted(
                by_node.items(), key=lambda item: -max(ratios[rank] for rank in item[1])
            )
        ]

    def _slow_node(
        self, node: str, ranks: list[int], own: list[float], ratios: list[float], data: list[float]
    ) -> SlowNode:
        worst = max(ranks, key=lambda rank: ratios[rank])
        peers = self._peers[self._places[worst].stage]
        longer = own[worst] - own[worst] / ratios[worst]
        waiting = data[worst] - statistics.median_low(data[rank] for rank in peers)
        windows = max(self._windows[rank] for rank in ranks)
        return SlowNode(node, ranks, own[worst], ratios[worst], waiting > longer / 2, windows)
