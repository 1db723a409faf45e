"""Who failed first: every rank holds a connection to rank 0, and what happens to it is told to all.

A rank that raises waits for its peers in the teardown of the collectives, and they wait for it in one. So the ranks
talk beside them, over plain sockets and in threads. The kernel closes the connection of a process that is killed, a
rank that raises says so, and one whose watchdog barks says where it stands. Then rank 0

1. has every rank write its stacks and the record of its collectives (`dump`),
2. names the rank that failed first by its own clock, because those of the nodes differ (:func:`first_failed`),
3. sends all away (`leave`), ten seconds after the first sign at the latest.

Only the rank that is named leaves with a status of its own; the others leave with `FOLLOWED_EXIT_CODE`, which counts
against no node. When rank 0 itself is killed, all connections close at once, and that is the same message.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tsugiki.pretrain.runtime.job import FOLLOWED_EXIT_CODE, HANG_EXIT_CODE
from tsugiki.pretrain.runtime.world import World

SETTLE_SECONDS = 1.0
"""A killed process closes its connections in any order: a peer's error may arrive before the death that caused it."""
DUMP_SECONDS = 8.0
"""How long ranks may take to write their stacks."""
LEAD_SECONDS = 1.5
"""The rank that is named leaves this much ahead of the others: Slurm ends all when the first one leaves."""
_LONGEST_MESSAGE = 65536  # bytes; ours have tens
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a node without power: 25 s
_COMMUNICATION = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|socket|store->get", re.IGNORECASE
)

Kind = Literal["died", "error", "hang", "peer"]
"""Killed; raised; does not get on; raised because a collective failed, as it does when another rank dies."""


@dataclass
class Seen:
    """What rank 0 knows of a rank.

    Attributes:
        position: signs of life it has given, the same number on all ranks that are at the same place.
        failed: kind and time of its failure.
        dumped: its stacks are written.
    """

    position: int | None = None
    failed: tuple[Kind, float] | None = None
    dumped: bool = False


def first_failed(ranks: dict[int, Seen]) -> int | None:
    """The rank that is to blame: the first that died or raised; of a hang the one the others wait for.

    In a hang all ranks report at about the same time. Those that wait for another have come further than that one,
    or it does not answer at all. When most are behind, or none is, nobody can be named.
    """
    for kinds in (("died", "error"), ("hang",), ("peer",)):
        failed = [
            (item.failed[1], rank) for rank, item in ranks.items() if item.failed and item.failed[0] in kinds
        ]
        if not failed:
            continue
        if kinds != ("hang",):
            return min(failed)[1]
        positions = {rank: item.position for rank, item in ranks.items() if item.position is not None}
        behind = [rank for rank in ranks if rank not in positions]
        if not behind and positions:
            least = min(positions.values())
            behind = [rank for rank, position in positions.items() if position == least]
        return min(behind) if 0 < len(behind) <= len(ranks) // 2 else None
    return None


def kind_of(error: BaseException) -> Kind:
    """Whether an error is a rank's own or what a collective says when another rank is gone."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return "error"
    distributed = isinstance(error, torch.distributed.DistError)
    if distributed or (isinstance(error, RuntimeError) and _COMMUNICATION.search(str(error))):
        return "peer"
    return "error"


@dataclass
class _Line:
    """A connection and what has arrived of its next message."""

    connection: socket.socket
    rank: int | None = None
    buffer: bytes = b""
    closed: bool = False
    said_goodbye: bool = False

    def receive(self) -> list[dict[str, Any]] | None:
        """Whole messages that have arrived; None at the end, or when this is no rank: ports are scanned."""
        try:
            data = self.connection.recv(65536)
            *lines, self.buffer = (self.buffer + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        talks = (
            data and len(self.buffer) <= _LONGEST_MESSAGE and all(isinstance(item, dict) for item in messages)
        )
        return messages if talks else None

    def send(self, **message: object) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


class Hub:
    """What runs in rank 0.

    Args:
        size: number of ranks.
        host: name or address at which the others reach this node.
    """

    def __init__(self, size: int, host: str) -> None:
        self.secret = secrets.token_hex(16)
        self._listener = socket.create_server(("", 0), backlog=max(128, size))
        self.address = (host, self._listener.getsockname()[1])
        self._lines: list[_Line] = []
        self._ranks: dict[int, Seen] = {}
        self._began: float | None = None
        # It lives as long as the connections it holds, and the thread holds it.
        threading.Thread(target=self._serve, name="peers-hub", daemon=True).start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._settled():
                for key, _ in selector.select(0.2 if self._began is not None else None):
                    if key.data is None:
                        line = _Line(_kept_alive(self._listener.accept()[0]))
                        self._lines.append(line)
                        selector.register(line.connection, selectors.EVENT_READ, line)
                    elif (messages := key.data.receive()) is None:
                        selector.unregister(key.fileobj)
                        key.data.connection.close()
                        self._closed(key.data)
                    else:
                        for message in messages:
                            self._heard(key.data, message)
        first = first_failed(self._ranks)
        for line in self._lines:
            line.send(leave=first, silent=first is None or not self._ranks[first].dumped)
        threading.Event().wait()  # a closed connection would say that rank 0 has died

    def _heard(self, line: _Line, message: dict[str, Any]) -> None:
        if "hello" in message:
            if message.get("secret") == self.secret:
                line.rank = int(message["hello"])
                self._ranks[line.rank] = Seen()
            return
        if line.rank is None:
            return
        seen = self._ranks[line.rank]
        seen.position = message.get("position", seen.position)
        line.said_goodbye |= "goodbye" in message
        seen.dumped |= "dumped" in message
        if "failed" in message:
            self._trouble(line.rank, message["failed"])

    def _closed(self, line: _Line) -> None:
        line.closed = True
        if line.rank is not None and not line.said_goodbye:
            self._ranks[line.rank].dumped = True  # nothing more will come
            self._trouble(line.rank, "died")

    def _trouble(self, rank: int, kind: Kind) -> None:
        now = time.monotonic()
        seen = self._ranks[rank]
        # A death explains the error that a rank reported in dying; a hang explains nothing.
        if seen.failed is None or seen.failed[0] == "hang":
            seen.failed = (kind, now)
        if self._began is None:
            self._began = now
            for line in self._lines:
                line.send(dump=True)

    def _settled(self) -> bool:
        if self._began is None:
            return False
        waited = time.monotonic() - self._began
        all_dumped = all(item.dumped for item in self._ranks.values())
        return waited > DUMP_SECONDS or (waited > SETTLE_SECONDS and all_dumped)


@dataclass
class Peers:
    """This rank's line to the others.

    Args:
        rank: this process.
        address: of rank 0's :class:`Hub`.
        secret: of the hub; a stranger's connection is not heard.
        dump: writes what this rank was doing.
        position: signs of life given so far.
        blamed: leaves the reason of a hang, given the rank that the others wait for (None: nobody can be named).
            That rank does it, or rank 0 where there is none or it does not answer.
    """

    rank: int
    address: tuple[str, int]
    secret: str
    dump: Callable[[], None]
    position: Callable[[], int] = lambda: 0
    blamed: Callable[[int | None], None] = lambda rank: None
    _verdict: int | None = None
    _told: threading.Event = field(default_factory=threading.Event)
    _reported: bool = False
    _done: bool = False
    _dumped: bool = False

    def __post_init__(self) -> None:
        self._line = _Line(_kept_alive(socket.create_connection(self.address, timeout=60)))
        self._line.connection.settimeout(None)
        self._line.send(hello=self.rank, secret=self.secret)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def failed(self, error: BaseException) -> bool:
        """Tell that this rank raised, have all write their stacks. Returns whether it was the first to fail."""
        self._reported = True
        self._line.send(failed=kind_of(error), position=self.position())
        self._told.wait(DUMP_SECONDS + 2)
        if self._verdict != self.rank:
            time.sleep(LEAD_SECONDS)
        return self._verdict == self.rank or not self._told.is_set()

    def hangs(self) -> None:
        """Tell that this rank does not get on. Does not return: the process ends when all have written."""
        self._line.send(failed="hang", position=self.position())
        time.sleep(DUMP_SECONDS + LEAD_SECONDS + 3)
        self._write()  # rank 0 does not answer
        self.blamed(0)
        os._exit(FOLLOWED_EXIT_CODE)

    def goodbye(self) -> None:
        """The work is done: a connection that closes now is no failure. Before the last barrier of the ranks."""
        self._done = True
        self._line.send(goodbye=True)

    def _listen(self) -> None:
        while (messages := self._line.receive()) is not None:
            for message in messages:
                if "dump" in message:
                    self._write()
                    self._line.send(dumped=True, position=self.position())
                if "leave" in message:
                    self._leave(message["leave"], silent=message["silent"])
                    return
        if not self._done:
            self._write()
            self._leave(0)  # rank 0 is gone

    def _write(self) -> None:
        if not self._dumped:
            self._dumped = True
            with contextlib.suppress(Exception):
                self.dump()

    def _leave(self, first: int | None, *, silent: bool = False) -> None:
        self._verdict = first
        self._told.set()
        if self._reported or self._done:
            return  # the main thread leaves by itself, with its error
        if first == self.rank:
            self.blamed(first)
            os._exit(HANG_EXIT_CODE)
        if silent and self.rank == 0:
            self.blamed(first)
        time.sleep(LEAD_SECONDS)
        if not self._reported:
            os._exit(FOLLOWED_EXIT_CODE)


def connect(world: World, dump: Callable[[], None]) -> Peers:
    """Join; every rank calls this when the process group stands.

    Args:
        world: this process.
        dump: writes what this rank was doing.
    """
    import torch

    # Named by the launcher; the ranks of one machine have no such name.
    hub = Hub(world.size, os.environ.get("MASTER_ADDR", "127.0.0.1")) if world.rank == 0 else None
    told: list[Any] = [None if hub is None else (*hub.address, hub.secret)]
    torch.distributed.broadcast_object_list(told, src=0)
    host, port, secret = told[0]
    return Peers(world.rank, (host, port), secret, dump)


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def write_state(folder: Path, rank: int) -> None:
    """The stacks of all threads to standard error; the last collectives of this rank to `flight_recorder_<rank>`.

    torch's `torchfrtrace` reads those files of all ranks and names the collective that some did not join.
    """
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    import torch
    import torch._C._distributed_c10d as c10d

    # NCCL keeps a record of its own; a build with CUDA has both, whatever the ranks talk over.
    record = getattr(c10d, "_dump_nccl_trace" if torch.cuda.is_available() else "_dump_fr_trace", None)
    if record is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"flight_recorder_{rank}").write_bytes(record())
