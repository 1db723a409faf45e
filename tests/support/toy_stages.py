"""Stages small enough to count in one's head, for the tests of the graph."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from tsugiki.experiment.config.fingerprint import NotFingerprinted
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.run.stage import StageContext, StageResult


class ToyConfig(StrictModel):
    text: str = "x"
    log_interval: Annotated[int, NotFingerprinted] = 1
    fail: bool = False
    fail_with_oserror: int = 0


def write(
    config: ToyConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    (output_dir / "out.txt").write_text(
        "".join((path / "out.txt").read_text() for path in inputs.values()) + config.text
    )
    (output_dir / "report.json").write_text(f'{{"pid": {os.getpid()}}}')
    (output_dir / ".work").mkdir()
    (output_dir / ".work" / "scratch").write_text("junk")
    if config.fail:
        raise DataError("toy failure", where="here")
    if config.fail_with_oserror:
        raise OSError(config.fail_with_oserror, os.strerror(config.fail_with_oserror), "some/file")
    return StageResult(counts={"letters": len(config.text)}, metrics={"toy/letters": len(config.text)},
                       artifacts=("out.txt",), summary=(f"wrote {config.text}",))  # fmt: skip


def constant(
    config: ToyConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Same output whatever the input: what follows need not be redone."""
    (output_dir / "out.txt").write_text("constant")
    return StageResult()


def countdown(
    config: ToyConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Resumable: one file a step; kills its own process as the kernel would when told to."""
    (output_dir / "checkpoints" / "iter_1").mkdir(parents=True, exist_ok=True)
    done = len(list(output_dir.glob("step-*")))
    with (output_dir / "starts.txt").open("a") as file:
        file.write(f"{done}\n")
    for step in range(done, 5):
        if done == 0 and str(step) == os.environ.get("TOY_KILL_AFTER"):
            os.kill(os.getpid(), signal.SIGKILL)
        (output_dir / f"step-{step}").write_text("done")
    return StageResult()


def write_beside(
    config: ToyConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """While it runs, somebody puts a folder where its result is to go."""
    theirs = output_dir.with_name(output_dir.name.removesuffix(".partial"))
    theirs.mkdir()
    (theirs / "only-copy.txt").write_text("text", encoding="utf-8")
    return write(config, inputs, output_dir, context)


def rust_full(
    config: ToyConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """A full disk as safetensors words it."""
    raise RuntimeError('I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }')
