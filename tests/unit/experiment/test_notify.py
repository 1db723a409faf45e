"""Commands that are told how a run ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsugiki.experiment.errors import DataError, Interrupted
from tsugiki.experiment.notify import NotifyConfig, notified
from tsugiki.pipeline import load_experiment


def ended(folder: Path, error: BaseException | None, *, to_the_end: bool = True) -> str:
    told = folder / "told"
    command = f'echo "$TSUGIKI_EVENT $TSUGIKI_NAME $TSUGIKI_RUN_DIR $TSUGIKI_MESSAGE" >> {told}'
    config = NotifyConfig(done=command, failed=command, preempted=command)
    try:
        with notified(config, "x", folder, to_the_end=to_the_end):
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    text = told.read_text() if told.is_file() else ""
    told.unlink(missing_ok=True)
    return text.strip()


def test_each_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(tmp_path, None) == f"done x {tmp_path}"
    assert ended(tmp_path, None, to_the_end=False) == ""
    assert ended(tmp_path, DataError("no text")) == f"failed x {tmp_path} no text"
    for stop in (Interrupted("stop"), KeyboardInterrupt(), SystemExit(75)):
        assert ended(tmp_path, stop).startswith("preempted")
    assert ended(tmp_path, SystemExit(1)).startswith("failed")
    monkeypatch.setenv("RANK", "1")
    assert ended(tmp_path, None) == ""


def test_a_command_that_fails_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with notified(NotifyConfig(done="exit 3"), "x", tmp_path, to_the_end=True):
        pass
    assert "notify.done failed, the work does not" in capfd.readouterr().err


def test_a_run_of_an_experiment_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise DataError("no text")

    monkeypatch.setattr("tsugiki.experiment.run.graph.Graph.run", broken)
    command = f'echo "$TSUGIKI_EVENT of $TSUGIKI_NAME" > {tmp_path}/told'
    experiment = load_experiment("smoke", values={"run_dir": str(tmp_path / "run"), "notify.failed": command})
    with pytest.raises(DataError):
        experiment.run()
    assert (tmp_path / "told").read_text() == "failed of smoke\n"
