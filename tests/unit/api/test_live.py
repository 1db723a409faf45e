"""Runs while they go on: curves in the terminal, the dashboard; files alone, damaged ones too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tsugiki.cli import live as commands
from tsugiki.cli.main import app
from tsugiki.dashboard import write_dashboard
from tsugiki.experiment.errors import ConfigError
from tsugiki.live import curve, screen


def run_dir(folder: Path, steps: int = 30, state: str = "train.partial") -> Path:
    (folder / state).mkdir(parents=True)
    (folder / "config.yaml").write_text("name: x\n")
    lines = [
        {"step": step, "train/loss": 4 - step / 30, "throughput/tokens_per_second": 100.0, "consumed_tokens": 10 * step,
         **({"validation/bits_per_byte/ja": 2 - step / 60} if step % 10 == 0 else {})}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / state / "metrics.jsonl").write_text(f'{text}\n{{"step": 31, "train/lo')  # being written
    return folder


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """(column, row) of the dots, rows from above; by the code points' definition (U+2800, dots 1 to 8)."""
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # of bits 0 to 7
    return {
        (2 * x + dx, 4 * y + dy)
        for y, line in enumerate(lines)
        for x, character in enumerate(line)
        for bit, (dx, dy) in enumerate(places)
        if ord(character) - 0x2800 >> bit & 1
    }


def test_curve_has_its_dots_where_the_points_are() -> None:
    points = [(float(x), float(y)) for x, y in ((0, 0), (1, 5), (2, 7), (3, 2))]
    assert dots(curve(points, width=2, height=2)) == {(0, 7), (1, 2), (2, 0), (3, 5)}
    assert dots(curve([(0, 1.0), (9, 1.0)], width=5, height=1)) == {(0, 3), (9, 3)}
    assert curve([(0, float("nan"))]) == []


def test_screen_of_a_run(tmp_path: Path) -> None:
    text, over = screen(run_dir(tmp_path / "x"))
    assert not over
    assert "train     partial" in text and "step 30" in text
    assert "train/loss  3  (from 3 to 3.967, step 30)" in text
    assert "validation/bits_per_byte/ja  1.5  (from 1.5 to 1.833, step 30)" in text
    with pytest.raises(ConfigError, match="no run here"):
        screen(tmp_path)


def test_screen_of_a_study(tmp_path: Path) -> None:
    run_dir(tmp_path / "a")
    trials: dict[str, Any] = {
        "a": {"state": "running", "detail": "train to report"},
        "b": {"state": "failed", "detail": "exit status 1"},
    }
    (tmp_path / "trials.json").write_text(json.dumps({"trials": trials}))
    text, over = screen(tmp_path)
    assert not over and "0 of 2 trials done" in text
    assert "running  a  train to report" in text and "train/loss 3" in text
    trials["a"]["state"] = "done"
    (tmp_path / "trials.json").write_text(json.dumps({"trials": trials}))
    assert screen(tmp_path)[1]
    (tmp_path / "trials.json").write_text('{"trials": [1]}')
    with pytest.raises(ConfigError, match="state of the study is damaged"):
        screen(tmp_path)


def test_watching_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = {"a": {"state": "waiting", "detail": ""}}
    file = tmp_path / "trials.json"
    file.write_text(json.dumps({"trials": trials}))

    def sleep(seconds: float) -> None:
        assert seconds == 2.0
        file.write_text(json.dumps({"trials": {"a": {"state": "done", "detail": ""}}}))

    monkeypatch.setattr(commands.time, "sleep", sleep)
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--watch", "--every", "2"])
    assert done.exit_code == 0 and done.stdout.count("trials done") == 2


def test_dashboard(tmp_path: Path) -> None:
    run_dir(tmp_path / "runs" / "one")
    run_dir(tmp_path / "runs" / "two", steps=5)
    (tmp_path / "runs" / "three").mkdir()
    (tmp_path / "runs" / "three" / "config.yaml").write_text("name: x\n")
    out = tmp_path / "page.html"
    assert not write_dashboard([tmp_path / "runs"], out, 10)
    text = out.read_text()
    assert '<meta http-equiv="refresh" content="10">' in text
    assert text.count("<svg") == 3  # loss, bits per byte, speed
    assert all(f"runs/{name}" in text for name in ("one", "two", "three"))
    done = CliRunner().invoke(app, ["dashboard", str(tmp_path / "runs"), "--out", str(out), "--once"])
    assert done.exit_code == 0 and "http-equiv" not in out.read_text()
    with pytest.raises(ConfigError, match="no runs here"):
        write_dashboard([tmp_path / "runs" / "one" / "train.partial"], out, None)
