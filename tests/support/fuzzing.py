"""What the fuzzers share: the rule, its bounds, mutations of bytes, JSON and text, and how long they look.

The rule: a call returns, or raises an error of ours that says what, and where or what it got; within bounds of time
and memory. Everything else (another exception, a call that does not end, memory) is a defect.
"""

from __future__ import annotations

import copy
import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tsugiki.experiment.errors import TsugikiError

T = TypeVar("T")
SECONDS, RESIDENT_BYTES, ADDRESS_BYTES = 20.0, 2**30, 2**33
"""What one call may take: processor time, memory that it uses, and memory that it may ask for at all."""
NASTY = [
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 10**25, 0.0, -0.5, 1e308, float("inf"), float("nan"), "", " ", "0",
    "-1", "1e999", "nan", "../x", "/", "~nosuchuser/x", "a\0b", "a\nb", "\ud800", "é" * 300, "日本語", [], [[]], [None],
    {}, {"": {}}, {"name": None}, [1, "a", {}], "no", "0777", "2024-13-45", "{", "*", "%s", "${HOME}",
]  # fmt: skip
"""Values that have broken readers before."""


class TakesTooLong(BaseException):
    """Not an Exception: nothing on the way may take it for a failure of its own."""


class Budget:
    """How long to look: a fixed set of examples in `make test`; with `--fuzz-minutes` others until the time is over."""

    minutes = 0.0
    """Of all targets together."""
    targets = 1


def fuzz(examples: int) -> Callable[[T], T]:
    """Settings of a target.

    Args:
        examples: of a run of `make test`, always the same ones.
    """
    quick = Budget.minutes == 0
    return settings(
        max_examples=examples,
        derandomize=quick,
        database=None,
        deadline=None,  # `bounded` has its own, which also ends what does not return
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


@contextmanager
def bounded() -> Iterator[None]:
    """End what takes longer, and fail on what uses more memory, than :data:`SECONDS` and the like say."""

    def late(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TakesTooLong(f"over {SECONDS} s")

    before = _memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (before["VmSize"] + ADDRESS_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    used = _memory()["VmHWM"] - before["VmRSS"]
    assert used < RESIDENT_BYTES, f"{used:,} bytes of memory"


def _memory() -> dict[str, int]:
    """Bytes: address space, resident, peak of the latter."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if name in ("VmSize", "VmRSS", "VmHWM")
    }


def right_or_refused(call: Callable[[], T]) -> T | TsugikiError:
    """What the call returns, or the error of ours that it raised, after a look at both."""
    with bounded():
        try:
            return call()
        except TsugikiError as error:
            assert error.what.strip(), repr(error)
            assert "where:" in str(error) or "got:" in str(error), f"neither where nor got: {error}"
            assert len(str(error)) < 20_000, "nobody reads that"
            return error


# --- mutations ------------------------------------------------------------------------------------


@st.composite
def mutated_bytes(draw: st.DrawFn, original: bytes, most: int = 6) -> bytes:
    """Bytes with a few flipped, cut out, doubled, replaced or put in."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(("flip", "put", "cut", "double", "end", "number")))
        length = draw(st.integers(1, 64))
        if how == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "put":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif how == "cut":
            del data[place : place + length]
        elif how == "double":
            data[place:place] = data[place : place + length]
        elif how == "end":
            del data[place:]
        elif how == "number":
            data[place : place + 4] = draw(
                st.sampled_from((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"))
            )
    return bytes(data)


def places(value: Any, location: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value."""
    found = [location]
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*location, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:3]):
            found += places(item, (*location, number))
    return found


@st.composite
def mutated_json(draw: st.DrawFn, original: Any, most: int = 3) -> Any:
    """A JSON value with a few places replaced by nasty ones, removed, or added."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, most))):
        location = draw(st.sampled_from(places(value)))
        # A copy: what is added to a nasty value must not stay in it.
        new = copy.deepcopy(
            draw(st.one_of(st.sampled_from(NASTY), st.text(max_size=8), st.integers(), st.floats()))
        )
        if not location:
            if draw(st.integers(0, 9)) == 0:
                return new
            continue
        inner = value
        for step in location[:-1]:
            inner = inner[step]
        how = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add")))
        if how == "replace":
            inner[location[-1]] = new
        elif how == "remove":
            del inner[location[-1]]
        elif isinstance(inner, dict):
            inner[draw(st.text(max_size=5))] = new
    return value


def as_json(value: Any) -> bytes:
    """As a file holds it; lone surrogates escaped."""
    return json.dumps(value).encode()
