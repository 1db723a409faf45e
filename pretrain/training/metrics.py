"""What a run reports: metrics.jsonl, the console, and the mixture's bits per byte."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.model_spec import ModelSpec
from tsugiki.experiment.tracking.tracker import Point
from tsugiki.pretrain.planning.flops import GPUS

# Board names as CUDA reports them; other boards of the same chips have other clocks and are not in the table.
_BOARDS = {"A100": "a100-80gb", "H100": "h100", "H200": "h200", "B200": "b200", "L40S": "l40s"}
_OTHER_BOARDS = ("PCIe", "NVL", "GB200")
_NOT_METRICS = ("step", "consumed_tokens", "seconds", "phase", "event", "reason")


def tokens_per_byte(mixture: Mixture) -> float:
    """Training tokens per byte of text, sources weighted by their share of the mixture.

    A nat per token is (tokens / bytes) / ln 2 bits per byte.
    """
    bytes_per_token = sum(source.share * source.bytes / max(source.tokens, 1) for source in mixture.sources)
    return 1.0 / bytes_per_token if bytes_per_token else math.nan


def data_sheet_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name; None for one that is not in the table of `tsugiki plan`."""
    if name.startswith("NVIDIA A100") or not any(board in name for board in _OTHER_BOARDS):
        for part, board in _BOARDS.items():
            if part in name:
                return GPUS[board].peak_flops
    return None


def flops_per_token(spec: ModelSpec, sequence_length: int) -> tuple[float, float]:
    """Floating-point operations of one token's forward and backward pass.

    Matrices: 6 per parameter that multiplies (2 forward, 4 backward), the output layer included, the
    input embedding not. Attention scores and their use: 12 x heads x head width x keys per layer.

    Returns:
        With every key counted (full s^2: NeMo <= 24.12, torchtitan), and with the causal half
        (Megatron-Bridge >= 25.09); a sliding window bounds the keys in both.
    """
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * queries + 2 * keys) + 3 * spec.hidden_size * spec.ffn_size
    matrices = 6.0 * (spec.layers * layer + spec.vocabulary_size * spec.hidden_size)
    window = min(spec.sliding_window or sequence_length, sequence_length)
    full = 12.0 * spec.layers * queries * window
    # Mean keys of a causal token: s/2, or w - w^2 / 2s under a window w.
    mean_keys = window - window * window / (2 * sequence_length)
    causal = 12.0 * spec.layers * queries * mean_keys
    return matrices + full, matrices + causal


class Interval:
    """Sums since the last log line.

    Args:
        total: sum of losses in nats.
        tokens: tokens that count in the loss.
        norm: gradient norm of the last step.
        steps: steps; those before a restart count in the loss and not in the throughput.
    """

    def __init__(self, total: float = 0.0, tokens: float = 0.0, norm: float = 0.0, steps: int = 0) -> None:
        self.total, self.tokens, self.norm, self.steps = total, tokens, norm, steps
        self.timed_steps = 0
        self._before = 0.0
        self.begin()

    def begin(self) -> None:
        """The next step begins now."""
        self._start = time.monotonic()

    def sums(self) -> dict[str, float]:
        """What a checkpoint keeps: the arguments of another one that goes on from here."""
        return {"total": self.total, "tokens": self.tokens, "norm": self.norm, "steps": self.steps}

    def add(self, loss: float, norm: float, tokens: float) -> None:
        """One step."""
        self.total += loss * tokens
        self.tokens += tokens
        self.norm = norm
        self.steps += 1
        self.timed_steps += 1
        now = time.monotonic()
        self._before += now - self._start
        self._start = now

    def exclude(self, seconds: float) -> None:
        """Do not count time spent otherwise since the last step (validation, checkpoint)."""
        self._start += seconds

    def seconds(self) -> float:
        """Time spent in steps."""
        return self._before

    def loss(self) -> float:
        """Mean over tokens."""
        return self.total / max(self.tokens, 1.0)


class MetricsLog:
    """Writes metric lines to metrics.jsonl, which the trackers are fed from, and lines to the console.

    Args:
        path: metrics.jsonl; lines after `step` are dropped, they belong to steps done again.
        step: steps of the checkpoint that the run continues from.
        total_steps: for the time left.
    """

    def __init__(self, path: Path, step: int, total_steps: int) -> None:
        self._total = total_steps
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

    def console_line(self, line: Mapping[str, Any]) -> str:
        """One interval as a person wants to read it."""
        step = int(line["step"])
        elapsed = time.monotonic() - self._start
        done = step - self._begin
        left = (self._total - step) * elapsed / done if done else 0.0
        share = line.get("throughput/mfu_full_attention")
        return (
            f"step {step:>{len(str(self._total))}}/{self._total}"
            f"  loss {line['train/loss']:.4f}"
            f"  bits/byte {line['train/bits_per_byte']:.4f}"
            f"  lr {line['train/learning_rate']:.2e}"
            f"  grad {line['train/grad_norm']:.3f}"
            f"  {line['throughput/tokens_per_second']:,.0f} tok/s"
            + (f"  MFU {share:.1%}" if share is not None else "")
            + f"  {_clock(left)} left"
        )

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def point_of(line: Mapping[str, Any]) -> Point:
    """A line of metrics.jsonl as the trackers take it."""
    return Point(int(line["step"]), int(line["seconds"] * 1000), numbers_of(line))


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line, without its bookkeeping and without what is not finite."""
    return {
        key: float(value)
        for key, value in line.items()
        if key not in _NOT_METRICS and isinstance(value, (int, float)) and math.isfinite(value)
    }


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
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
