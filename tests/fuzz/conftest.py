"""Fuzzers: a fixed set of examples in `make test`; `pytest tests/fuzz --fuzz-minutes 5` looks on at random."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest
from fuzzing import Budget


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-minutes", type=float, default=0, help="time for all fuzzers together; 0: the fixed examples"
    )


def pytest_configure(config: pytest.Config) -> None:
    Budget.minutes = config.getoption("--fuzz-minutes", default=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    Budget.targets = max(1, sum("fuzz" in item.path.parts for item in items))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Once more with other examples until the target's share of the time is over."""
    until = time.monotonic() + 60 * Budget.minutes / Budget.targets
    done = yield
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    while time.monotonic() < until:
        pyfuncitem.obj(**arguments)
    return done
