"""What the processes of a training run are told, and what they report back."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Literal

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvironmentError_,
    Interrupted,
    TrainingError,
    TsugikiError,
)
from tsugiki.pretrain.config import TrainConfig

WORK_NAME = ".work"
CHECKPOINTS_NAME = "checkpoints"
METRICS_NAME = "metrics.jsonl"
PACKING_NAME = "packing.json"
INTERRUPTED_EXIT_CODE = Interrupted.exit_code
"""Exit status of a rank that saved a checkpoint and stopped because it was told to (EX_TEMPFAIL)."""

FOLLOWED_EXIT_CODE = 76
"""Exit status of a rank that left because another one failed first; it counts against no node."""
HANG_EXIT_CODE = 70
"""Exit status of the rank that the others waited for when training hung."""

_ERROR_BYTES = 16_384
_TRACE_CHARACTERS = 4_000

_ERRORS: dict[str, type[TsugikiError]] = {
    kind.__name__: kind
    for kind in (CheckpointError, ConfigError, DataError, EnvironmentError_, TrainingError)
}


class PeerFailedError(TrainingError):
    """This rank ends because another one failed first."""

    exit_code = FOLLOWED_EXIT_CODE


class TrainJob(StrictModel):
    """A training run as its processes see it."""

    config: TrainConfig
    graft_dir: Path
    """Directory of `model.json` and `checkpoint/`, the weights to start from."""
    tokens_dir: Path
    """Directory of `mixture.json` and the `.bin/.idx` pairs."""
    output_dir: Path
    """Where checkpoints and metrics go."""
    seed: int
    continue_from: str | None = None
    """RUN@STEP with a whole path, where the weights are another run's."""
    purpose: Literal["train", "reference"] = "train"
    """`reference`: only read the pairs with the first weights."""
    reference_dir: Path | None = None
    """What the reference model says of pairs, where the objective compares with one."""
    tracking_runs: dict[str, str] = {}
    """Id of the run in each tracker, for checkpoint.json."""

    @property
    def work_dir(self) -> Path:
        """Scratch of the run."""
        return self.output_dir / WORK_NAME

    @property
    def checkpoints_dir(self) -> Path:
        """Directory of the checkpoints."""
        return self.output_dir / CHECKPOINTS_NAME

    @property
    def metrics_path(self) -> Path:
        """One JSON object per log line."""
        return self.output_dir / METRICS_NAME


def reserve_error(work_dir: Path, rank: int) -> None:
    """Take the space of an error now: the reason must be told even when the disk is full."""
    error_path(work_dir, rank).write_bytes(b" " * _ERROR_BYTES)


def write_error(work_dir: Path, rank: int, error: BaseException) -> None:
    """Leave the reason of a failed rank where its launcher finds it; in the space reserved for it, if any."""
    known = isinstance(error, TsugikiError)
    record = {
        "class": type(error).__name__ if known else TrainingError.__name__,
        "what": error.what if isinstance(error, TsugikiError) else f"{type(error).__name__}: {error}",
        "parts": {
            part: str(value)
            for part in ("where", "got", "expected", "fix")
            if (value := getattr(error, part, None)) is not None
        },
        "trace": "" if known else "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:],
    }
    path = error_path(work_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as stream:
        stream.write(json.dumps(record).encode())
        stream.truncate()


def read_error(work_dir: Path, rank: int) -> TsugikiError | None:
    """The error a rank left, if any."""
    try:
        record = json.loads(error_path(work_dir, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = _ERRORS.get(record["class"], TrainingError)
    parts = dict(record["parts"])
    if record["trace"]:
        parts.setdefault("where", f"rank {rank}")
        parts["got"] = record["trace"].strip()
    return kind(record["what"], **parts)


def error_path(work_dir: Path, rank: int) -> Path:
    """File of a rank's error."""
    return work_dir / "errors" / f"rank_{rank}.json"


def log_path(work_dir: Path, rank: int) -> Path:
    """File of a rank's standard error."""
    return work_dir / "logs" / f"rank_{rank}.log"
