"""Is every node of a job as fast as the others? One process on each measures, and judges itself by the median.

Nodes tell each other their figures in files of a shared folder: a broken network must not keep the others from being
judged. Each file has a name that all know beforehand; a listing on NFS shows another node's files only much later.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tsugiki.experiment.files import write_json_atomically

UNITS = {"compute": "FLOP/s", "memory": "B/s", "disk": "B/s", "network": "B/s"}
LEAST_SHARES = {"compute": 0.8, "memory": 0.8, "disk": 0.1, "network": 0.5}
"""Least share of the median that a node must reach; what many jobs share at a time, a file system or a network, differs
by itself."""

_WAIT_SECONDS = 120.0
_PAIR_SECONDS = 60.0
_GPU_BYTES, _CPU_BYTES = 1 << 30, 32 << 20
_DISK_BYTES = 64 << 20
_REPEATS = 5


@dataclass(frozen=True)
class Task:
    """The place of this process.

    Attributes:
        number: of the node, from 0.
        size: nodes.
        node: its name.
        folder: that all nodes see, fresh for every test.
    """

    number: int
    size: int
    node: str
    folder: Path

    @classmethod
    def from_environment(cls, folder: Path) -> Task:
        """As Slurm's srun describes it; the only node where it did not start this process."""
        name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        if "SLURM_STEP_ID" not in os.environ:
            return cls(0, 1, name, folder)
        return cls(int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), name, folder)


def examine_node(task: Task, shares: Mapping[str, float], wait_seconds: float = _WAIT_SECONDS) -> list[str]:
    """Measure this node and compare it with the others.

    Args:
        task: place of this process.
        shares: least share of the median for each of :data:`UNITS`.
        wait_seconds: how long the others may take longer than this node.

    Returns:
        Lines to print; those that begin with `BAD NODE` keep a node out (`slurm/job.sh`).
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    said: list[str] = []
    store = _store(task, wait_seconds)
    for name, measure in (("compute", _compute), ("memory", _memory), ("disk", lambda: _disk(task))):
        try:
            figures[name] = measure()
        except Exception as error:  # whatever is broken: the node is
            said.append(f"BAD NODE: {name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    if store is not None:
        figures["network"] = max(_pair(task, store, first) for first in (task.number, task.number - 1))
    write_json_atomically(_result(task, task.number), {"node": task.node, **figures})
    found = _everyone(task, wait_seconds)
    said.append(", ".join(f"{name} {value:.3g} {UNITS[name]}" for name, value in figures.items()))
    said += judged(figures, [item for item in found if item is not None], shares)
    missing = [number for number, item in enumerate(found) if item is None]
    if missing and task.number == min(set(range(task.size)) - set(missing)):
        names = os.environ.get("TSUGIKI_CHECKED_NODES", "").split()
        said += [
            f"BAD NODE at {names[number]}: no result in {wait_seconds:.0f} s"
            for number in missing
            if number < len(names)
        ]
    return said


def judged(
    own: Mapping[str, float], everyone: list[dict[str, Any]], shares: Mapping[str, float]
) -> list[str]:
    """What is too slow on this node.

    Args:
        own: figures of this node.
        everyone: figures of all nodes, this one among them.
        shares: least share of the median.
    """
    said = []
    for name, value in own.items():
        # Of two the faster one: the slow one must not be half of its own measure.
        median = statistics.median_high([item[name] for item in everyone if name in item])
        if value < shares[name] * median:
            said.append(
                f"BAD NODE: {name}: {value:.3g} {UNITS[name]}, {value / median:.0%} of the median of "
                f"{len(everyone)} nodes, {median:.3g}; at least {shares[name]:.0%} is needed"
            )
    return said


def _result(task: Task, number: int) -> Path:
    return task.folder / f"{number}.json"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _until(get: Callable[[], Any], seconds: float) -> Any:
    """What the function gives once it gives something; None when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, ValueError):
            return get()
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)


def _everyone(task: Task, seconds: float) -> list[dict[str, Any] | None]:
    deadline = time.monotonic() + seconds
    return [
        _until(partial(_read, _result(task, number)), deadline - time.monotonic())
        for number in range(task.size)
    ]


def _devices() -> list[str]:
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def _compute() -> float:
    """Of the slowest device."""
    import torch

    from tsugiki.pretrain.runtime.product import product_flops

    devices = _devices()
    dtype = torch.float32 if devices == ["cpu"] else torch.bfloat16
    return min(product_flops(device, dtype) for device in devices)


def _memory() -> float:
    """Bytes copied a second on the slowest device; what was copied must be what is there."""
    import torch

    def measure(device: str) -> float:
        size = _CPU_BYTES if device == "cpu" else _GPU_BYTES
        source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        best = 0.0
        for _ in range(_REPEATS):
            start = time.perf_counter()
            target.copy_(source)
            if device != "cpu":
                torch.cuda.synchronize(device)
            best = max(best, size / (time.perf_counter() - start))
        if not torch.equal(source, target):
            raise ArithmeticError(f"memory of {device} does not keep what is written")
        return best

    return min(measure(device) for device in _devices())


def _disk(task: Task) -> float:
    """Bytes written a second to the run's file system, until they are on it."""
    path = task.folder / f"{task.number}.data"
    data = os.urandom(_DISK_BYTES)
    try:
        start = time.perf_counter()
        with path.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return len(data) / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


def _store(task: Task, seconds: float) -> Any:
    """Where pairs meet, on the first node; None for a single node, or where it cannot be reached."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if task.size == 1:
        return None
    path, timeout = task.folder / "address.json", timedelta(seconds=seconds)
    if task.number == 0:
        store = TCPStore(socket.gethostname(), 0, is_master=True, wait_for_workers=False, timeout=timeout)
        write_json_atomically(path, {"host": socket.gethostname(), "port": store.port})
        return store
    address = _until(partial(_read, path), seconds)
    if address is None:
        return None
    with contextlib.suppress(Exception):
        return TCPStore(
            address["host"], address["port"], is_master=False, wait_for_workers=False, timeout=timeout
        )
    return None


def _pair(task: Task, store: Any, first: int) -> float:
    """Bytes a second of an all-reduce between two neighbours of the ring; 0 where it fails.

    A node is measured with both: the better figure is its own, for a slow neighbour is slow with everyone.

    Args:
        task: place of this process.
        store: where the pair meets.
        first: number of the first node of the pair; the next one is its partner.
    """
    import torch
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    first %= task.size
    gpu = torch.cuda.is_available()
    size = (_GPU_BYTES if gpu else _CPU_BYTES) // 4
    try:
        with _group(
            "nccl" if gpu else "gloo", PrefixStore(f"pair-{first}", store), int(task.number != first)
        ):
            values = torch.ones(size // 4, device="cuda:0" if gpu else "cpu")
            best = 0.0
            for _ in range(_REPEATS):
                start = time.perf_counter()
                torch.distributed.all_reduce(values)
                if gpu:
                    torch.cuda.synchronize()
                best = max(best, size / (time.perf_counter() - start))
        return best
    except Exception:
        return 0.0


@contextlib.contextmanager
def _group(backend: str, store: Any, rank: int) -> Iterator[None]:
    import torch

    timeout = timedelta(seconds=_PAIR_SECONDS)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=timeout)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
