"""Which rank is named when several report, and which error is a rank's own."""

import contextlib
import json
import socket
import time

import pytest
import torch

from tsugiki.pretrain.runtime.peers import Hub, Seen, first_failed, kind_of


@pytest.mark.parametrize(
    ("ranks", "first"),
    [
        ({0: Seen(5, ("error", 2.0)), 1: Seen(5, ("died", 1.0)), 2: Seen(5)}, 1),
        # what its death did to the others was heard first
        ({0: Seen(5, ("peer", 1.0)), 1: Seen(None, ("died", 1.1)), 2: Seen(5, ("peer", 1.2))}, 1),
        ({0: Seen(5, ("peer", 2.0)), 1: Seen(5, ("peer", 1.0)), 2: Seen(5)}, 1),
        # all hang; the others wait for the one that has come less far, or does not answer
        ({0: Seen(9, ("hang", 1.0)), 1: Seen(9, ("hang", 1.1)), 2: Seen(8, ("hang", 1.2))}, 2),
        ({0: Seen(9, ("hang", 1.0)), 1: Seen(9, ("hang", 1.1)), 2: Seen(None)}, 2),
        # the network, or most of them: nobody
        ({0: Seen(9, ("hang", 1.0)), 1: Seen(9, ("hang", 1.1)), 2: Seen(9)}, None),
        ({0: Seen(9, ("hang", 1.0)), 1: Seen(8, ("hang", 1.1)), 2: Seen(8)}, None),
        ({0: Seen(9, ("hang", 1.0)), 1: Seen(9, ("error", 1.1)), 2: Seen(8)}, 1),
        ({0: Seen(9), 1: Seen(9)}, None),
    ],
)
def test_who_failed_first(ranks: dict[int, Seen], first: int | None) -> None:
    assert first_failed(ranks) == first


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("connection closed"), "error"),
        (torch.OutOfMemoryError("NCCL could not allocate"), "error"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "error"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:544] Connection closed by peer [10.0.0.1]:9"), "peer"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "peer"),
    ],
)
def test_whose_error_it_is(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


class Line:
    """A connection to a hub, from a rank or from a stranger."""

    def __init__(self, hub: Hub) -> None:
        self.connection = socket.create_connection(hub.address, timeout=20)
        self.answers = self.connection.makefile()

    def say(self, **message: object) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def answer(self) -> dict[str, object]:
        return json.loads(self.answers.readline())


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"[1]\n", b'{"hello": 0}\n', b"x" * 200_000, b"\xff\xfe\n"],
)
def test_a_scanned_port_changes_nothing(noise: bytes) -> None:
    """Whoever else connects is not heard, and the ranks agree as before."""
    hub = Hub(2, "127.0.0.1")
    ranks = [Line(hub), Line(hub)]
    for number, line in enumerate(ranks):
        line.say(hello=number, secret=hub.secret)
    stranger = Line(hub)
    with contextlib.suppress(ConnectionError):  # hung up on, perhaps before all is said
        stranger.connection.sendall(noise)
        stranger.say(failed="error")
    stranger.connection.close()
    time.sleep(0.2)
    ranks[1].say(failed="error", position=3)
    assert [line.answer() for line in ranks] == [{"dump": True}] * 2
    for line in ranks:
        line.say(dumped=True)
    assert [line.answer() for line in ranks] == [{"leave": 1, "silent": False}] * 2
