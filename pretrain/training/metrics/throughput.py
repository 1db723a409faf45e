"""The line of a log window: loss, work done, share of the peak, memory, embedding rows."""

from __future__ import annotations

import math
import os
from typing import Any, Literal, Self

import psutil
import torch

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.model.model_flops import training_flops_per_token
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.planning.schedule import Phase
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.runtime.process_groups import all_gather_numbers
from tsugiki.pretrain.runtime.product import product_flops
from tsugiki.pretrain.training.metrics.stragglers import SlowNode, Stragglers
from tsugiki.pretrain.training.metrics.window import LogWindow, data_sheet_peak, tokens_per_byte
from tsugiki.pretrain.training.run import Run


def measured_peak(precision: str) -> float:
    """FLOP/s of square matrix products on this process's device; see :func:`product_flops`."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return product_flops(torch.cuda.current_device(), dtype)


def peak_flops(setting: float | Literal["measured"] | None, precision: str) -> float | None:
    """FLOP/s of one process at best, as `train.peak_tflops` says; None where nobody knows."""
    if setting == "measured":
        state = torch.get_rng_state()
        peak = measured_peak(precision)
        torch.set_rng_state(state)
        return peak
    if setting is not None:
        return setting * 1e12
    if not has_gpu() or precision == "fp32":
        return None
    return data_sheet_peak(torch.cuda.get_device_name())


def memory() -> tuple[str, float]:
    """Name and bytes: the most that CUDA had allocated since the last call, or what a CPU process holds."""
    if has_gpu():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return "memory/peak_allocated_bytes", float(peak)
    return "memory/resident_bytes", float(psutil.Process(os.getpid()).memory_info().rss)


class Throughput:
    """Puts the line of a log window together.

    Args:
        spec: the model.
        mixture: the data.
        sequence_length: tokens of a sample.
        tokens_per_step: of the global batch.
        processes: of the run.
        phases: of the run.
        peak: FLOP/s of one process at best; None = unknown, no MFU.
        stragglers: finds slow ranks.
    """

    def __init__(
        self,
        spec: ModelSpec,
        mixture: Mixture,
        sequence_length: int,
        tokens_per_step: int,
        processes: int,
        phases: list[Phase],
        peak: float | None,
        stragglers: Stragglers,
    ) -> None:
        self._tokens_per_step, self._processes = tokens_per_step, processes
        self._flops = {
            "full_attention": training_flops_per_token(spec, sequence_length, causal=False),
            "causal_attention": training_flops_per_token(spec, sequence_length, causal=True),
        }
        self._bits_per_nat = tokens_per_byte(mixture) / math.log(2)
        self._phases, self._peak = phases, peak
        self._stragglers = stragglers
        self.slow: list[SlowNode] = []
        """Nodes that were slow in the last line, and before."""
        self._waited = 0.0

    @classmethod
    def of(cls, run: Run) -> Self:
        """For a run; measures the peak where the configuration asks for it."""
        config = run.config
        return cls(
            run.spec,
            run.mixture,
            config.sequence_length,
            run.tokens_per_step,
            run.world.size,
            run.phases,
            peak_flops(config.peak_tflops, config.precision),
            Stragglers.of_this_job(config.straggler_factor),
        )

    def line(
        self,
        step: int,
        window: LogWindow,
        rate: float,
        phase: Phase,
        waited_seconds: float,
        norms: dict[str, float],
        own_seconds: float,
    ) -> dict[str, Any]:
        """The line of a window that ends with `step`; every rank calls this.

        Memory and the wait for data are those of the worst rank. FLOP/s are counted for the tokens that
        went through the model, masked ones included.

        Args:
            step: steps done.
            window: sums since the last line.
            rate: learning rate of the last step.
            phase: of the last step.
            waited_seconds: waited for data since the start, in all.
            norms: of the embedding rows.
            own_seconds: a step of this rank in its own passes.
        """
        memory_key, held = memory()
        # [ranks, 3]
        ranks = all_gather_numbers([held, waited_seconds - self._waited, own_seconds])
        held, waited, _ = (max(column) for column in zip(*ranks, strict=True))
        steps = max(window.timed_steps, 1)
        speeds, self.slow = self._stragglers.judge(
            [own for _, _, own in ranks], [waiting / steps for _, waiting, _ in ranks]
        )
        self._waited = waited_seconds
        seconds = max(window.seconds(), 1e-9)
        per_second = window.timed_steps * self._tokens_per_step / seconds
        loss = window.loss()
        consumed = step * self._tokens_per_step
        line = {
            "step": step,
            "consumed_tokens": consumed,
            "phase": phase.name,
            "train/loss": loss,
            **self._of_objective(window),
            "train/learning_rate": rate,
            "train/grad_norm": window.norm,
            "train/consumed_tokens": consumed,
            "throughput/tokens_per_second": per_second,
            "throughput/tokens_per_second_per_process": per_second / self._processes,
            "throughput/step_seconds": seconds / steps,
            "throughput/data_wait_seconds": waited,
            memory_key: held,
            "phase/number": self._phases.index(phase) + 1,
            "phase/consumed_tokens": consumed - phase.start_tokens,
            "phase/progress": (consumed - phase.start_tokens) / max(phase.end_tokens - phase.start_tokens, 1),
            **norms,
            **speeds,
        }
        if self.slow:
            line["stragglers"] = [node._asdict() for node in self.slow]
        for convention, flops in self._flops.items():
            achieved = per_second * flops
            line[f"throughput/tflops_{convention}"] = achieved / 1e12
            line[f"throughput/tflops_per_process_{convention}"] = achieved / self._processes / 1e12
            if self._peak is not None:
                line[f"throughput/mfu_{convention}"] = achieved / self._processes / self._peak
        return line

    def _of_objective(self, window: LogWindow) -> dict[str, float]:
        """What says more than the loss: bits per byte of text, or the means over the pairs."""
        if not window.measures:
            return {"train/bits_per_byte": window.loss() * self._bits_per_nat}
        pairs = max(window.tokens, 1.0)
        return {f"preference/{name}": value / pairs for name, value in window.measures.items()}
