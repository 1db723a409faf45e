"""When training saves early, what counts as an anomaly, whose peak is known."""

import math

import pytest

from tsugiki.pretrain.config import AnomalyConfig
from tsugiki.pretrain.training.guard import DEADLINE_VARIABLES, Deadline, LossGuard
from tsugiki.pretrain.training.metrics.window import data_sheet_peak


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("tsugiki.pretrain.training.guard.time.time", lambda: now[0])
    for name in DEADLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return now


def test_saves_once_when_twice_a_step_and_a_save_would_not_fit(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first save 30 s are assumed: 2 x (30 + 5) = 70 s before the end."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", "2000")
    deadline = Deadline()
    deadline.step_took(5)
    deadline.step_took(1)
    answers = {}
    for now in (1000, 1929, 1931, 1990):
        clock[0] = now
        answers[now] = deadline.save_now()
    assert answers == {1000: False, 1929: False, 1931: True, 1990: False}


def test_a_slow_save_is_begun_earlier(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_DEADLINE", "2000")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "9999")
    deadline = Deadline()
    assert deadline.problem == ""
    deadline.step_took(0)
    deadline.save_took(200)
    clock[0] = 1599
    assert not deadline.save_now()
    clock[0] = 1601
    assert deadline.save_now()


def test_a_long_first_step_is_forgotten(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step compiles for 300 s; after 32 others only their 5 s count: 2 x (30 + 5) = 70 s."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", "2000")
    deadline = Deadline()
    deadline.step_took(300)
    clock[0] = 1300
    assert not deadline.save_now()
    for _ in range(32):
        deadline.step_took(5)
    clock[0] = 1929
    assert not deadline.save_now()
    clock[0] = 1931
    assert deadline.save_now()


@pytest.mark.parametrize("text", ["tomorrow", "2026-11-21T15:00", "-5"])
def test_an_end_that_is_no_time_is_said(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """And Slurm's own figure counts."""
    monkeypatch.setenv("TSUGIKI_DEADLINE", text)
    assert f"TSUGIKI_DEADLINE={text!r} is not a number of seconds since 1970" in Deadline().problem
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1001")
    deadline = Deadline()
    deadline.step_took(1)
    assert deadline.save_now()


def test_without_an_end_nothing_is_saved_early(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "Unknown")
    deadline = Deadline()
    clock[0] = 1e12
    assert not deadline.save_now()


def test_what_is_an_anomaly() -> None:
    guard = LossGuard(AnomalyConfig(spike_factor=1.5, window_steps=4))
    assert guard.judge(9.0, 1.0) is None, "nothing to compare with yet"
    for loss in (2.0, 2.0, 4.0, 2.0):
        guard.accept(loss)
    assert guard.judge(3.0, 1.0) is None
    assert "jumped to 3.0100 from a median of 2.0000" in str(guard.judge(3.01, 1.0))
    assert "loss is nan" in str(guard.judge(math.nan, 1.0))
    assert "gradient norm is inf" in str(guard.judge(2.0, math.inf))
    assert LossGuard(AnomalyConfig()).judge(1e9, 1.0) is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_of_the_data_sheets(name: str, tflops: float | None) -> None:
    assert data_sheet_peak(name) == (None if tflops is None else tflops * 1e12)
