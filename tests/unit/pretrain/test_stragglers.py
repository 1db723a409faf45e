"""Slow ranks: compared with those that have the same share of the model, named when they stay slow."""

import pytest

from tsugiki.pretrain.training.metrics.stragglers import Place, StepClock, Stragglers

NODES = [Place("a", 0), Place("a", 0), Place("b", 0), Place("b", 0)]
NO_WAIT = [0.0] * 4


def test_a_rank_is_named_when_it_stays_slow_and_no_longer() -> None:
    found = Stragglers(NODES, 1.2)
    even, slow = [1.0, 1.0, 1.0, 1.1], [1.0, 1.0, 1.5, 1.1]
    assert found.judge(slow, NO_WAIT)[1] == [], "one window may be an accident"
    for windows in (2, 3):
        metrics, (node,) = found.judge(slow, NO_WAIT)
        assert (node.node, node.ranks, node.windows) == ("b", [2], windows)
        assert node.times_median == pytest.approx(1.5)
        assert not node.waits_for_data
    assert str(node) == (
        "slow: rank 2 on b, 1.50 x the median (1.500 s a step of its own), 3 log windows one after another"
    )
    assert metrics == {
        "ranks/own_seconds_median": 1.0, "ranks/own_seconds_max": 1.5, "ranks/slowest": 2,
        "ranks/slowest_times_median": 1.5, "ranks/slow": 1,
    }  # fmt: skip
    assert found.judge(even, NO_WAIT)[1] == []
    assert found.judge(slow, NO_WAIT)[1] == [], "counted anew"


def test_stages_of_a_pipeline_are_not_compared_with_each_other() -> None:
    """The last stage has the loss, too: three times the work, and nobody is slow."""
    places = [Place("a", 0), Place("b", 0), Place("c", 1), Place("d", 1)]
    found = Stragglers(places, 1.2)
    for _ in range(2):
        metrics, slow = found.judge([1.0, 1.0, 3.0, 3.9], NO_WAIT)
    assert [(node.node, node.ranks) for node in slow] == [("d", [3])]
    assert metrics["ranks/slowest_times_median"] == pytest.approx(1.3)


def test_ranks_of_a_node_come_together_and_waiting_for_data_is_said() -> None:
    found = Stragglers(NODES, 1.2)
    for _ in range(2):
        slow = found.judge([1.0] * 4, [0.0, 0.0, 0.5, 0.6])[1]
    (node,) = slow
    assert (node.ranks, node.waits_for_data) == ([2, 3], True)
    assert str(node).startswith(
        "slow: ranks 2, 3 on b, 1.60 x the median (1.600 s a step of its own, most of the "
    )


def test_nobody_is_named_where_it_is_not_asked_for() -> None:
    found = Stragglers(NODES, None)
    assert [found.judge([1.0, 1.0, 1.0, 9.0], NO_WAIT)[1] for _ in range(3)] == [[]] * 3


def test_the_clock_counts_own_passes_of_training_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    clock = StepClock()

    def timed(name: str) -> None:
        clock(name, log_level=2).start(barrier=True)
        clock(name).stop()

    timed("forward-compute")  # of a validation
    for _ in range(2):
        clock.begin()
        for name in ("forward-recv", "forward-compute", "backward-compute", "all-grads-sync"):
            timed(name)
        clock.end()
    assert clock.take() == 2.0, "two passes of a second each, a step"
    assert clock.take() == 0.0
