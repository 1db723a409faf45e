"""Where a run reports: metrics.jsonl, which the trackers are fed from, and the console."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.experiment.files import write_json_atomically, write_text_atomically
from tsugiki.pretrain.runtime.job import PACKING_NAME
from tsugiki.pretrain.runtime.process_groups import is_logging_rank

if TYPE_CHECKING:
    from tsugiki.pretrain.training.samples.packing import Packing


class MetricsLog:
    """Writes metric lines to metrics.jsonl, which the trackers are fed from, and lines to the console.

    Args:
        path: metrics.jsonl; lines after `step` are dropped, they belong to steps done again.
        step: steps of the checkpoint that the run continues from.
        total_steps: for the time left.
    """

    def __init__(self, path: Path, step: int, total_steps: int) -> None:
        self._total, self._path = total_steps, path
        self._begin = step
        self._start = time.monotonic()
        truncate(path, step)
        self._stream = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        line = {**line, "seconds": round(time.time(), 3)}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """A line for the console."""
        print(text, file=sys.stdout, flush=True)

    def packed(self, packing: Mapping[str, Packing]) -> None:
        """What became of the conversations of each source that is packed whole; also in packing.json."""
        for name, facts in packing.items():
            self.say(f"{name}: {facts}")
        if packing:
            write_json_atomically(
                self._path.parent / PACKING_NAME, {name: asdict(facts) for name, facts in packing.items()}
            )

    def window(self, line: Mapping[str, Any]) -> None:
        """The line of a log window, also as a person wants to read it."""
        self.write(line)
        self.say(self._console_line(line))

    def _console_line(self, line: Mapping[str, Any]) -> str:
        step = int(line["step"])
        elapsed = time.monotonic() - self._start
        done = step - self._begin
        left = (self._total - step) * elapsed / done if done else 0.0
        share = line.get("throughput/mfu_full_attention")
        quality = (
            f"  bits/byte {line['train/bits_per_byte']:.4f}"
            if "train/bits_per_byte" in line
            else f"  accuracy {line['preference/accuracy']:.3f}  margin {line['preference/margin']:.4f}"
        )
        return (
            f"step {step:>{len(str(self._total))}}/{self._total}"
            f"  loss {line['train/loss']:.4f}"
            f"{quality}"
            f"  lr {line['train/learning_rate']:.2e}"
            f"  grad {line['train/grad_norm']:.3f}"
            f"  {line['throughput/tokens_per_second']:,.0f} tok/s"
            + (f"  MFU {share:.1%}" if share is not None else "")
            + f"  {_clock(left)} left"
        )

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class SilentLog:
    """Of the ranks that do not report."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def packed(self, packing: Mapping[str, Packing]) -> None:
        """Nothing."""

    def window(self, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


Log = MetricsLog | SilentLog


def open_log(path: Path, step: int, total_steps: int, problems: Sequence[str]) -> Log:
    """The log of this rank.

    Args:
        path: metrics.jsonl.
        step: steps of the checkpoint that the run continues from.
        total_steps: of the run.
        problems: what is wrong with newer checkpoints.
    """
    if not is_logging_rank():
        return SilentLog()
    log = MetricsLog(path, step, total_steps)
    for problem in problems:
        log.say(f"{problem}; using an earlier one")
    if problems:
        log.write(
            {
                "step": step,
                "event": "fallback",
                "reason": "; ".join(problems),
                "fallback/damaged_checkpoints": len(problems),
            }
        )
    if step:
        log.say(f"continuing from the checkpoint of step {step}")
    return log


def truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line that was not written to its end."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if int(line["step"]) <= step:
            kept.append(text + "\n")
    write_text_atomically(path, "".join(kept))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
