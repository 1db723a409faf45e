"""The training loop of one rank."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from experiment.errors import DataError, TrainingError
from experiment.mixture import Mixture
from experiment.tracking import NullTracker, attach
from pretrain.checkpoint import CheckpointStore, TrainingState, device_name
from pretrain.data import Batch, BatchLayout, BatchReader, TrainingData, iterators
from pretrain.distributed import agree, owns_loss, sum_over_replicas
from pretrain.job import TrainJob
from pretrain.metrics import MetricsLog, tokens_per_byte
from pretrain.model import build_model, flops_per_token
from pretrain.optimizer import Optimizer, wrap_models
from pretrain.schedule import Phase, phase_at, resolve_phases
from pretrain.signals import StopRequest
from pretrain.spec import ModelSpec
from pretrain.validation import Windows, read_heldout
from pretrain.world import World


def total_steps(mixture: Mixture, global_batch: int, sequence_length: int) -> int:
    """Steps of a run: whole global batches in the mixture's tokens.

    Raises:
        DataError: the mixture is smaller than one global batch.
    """
    steps = mixture.total_tokens // (global_batch * sequence_length)
    if steps == 0:
        raise DataError(
            "the mixture is smaller than one training step",
            where="tokens.mixture.total_tokens",
            got=f"{mixture.total_tokens:,} tokens",
            expected=f"at least train.global_batch x train.sequence_length = "
            f"{global_batch * sequence_length:,}",
        )
    return steps


class Trainer:
    """Everything one rank holds during training.

    Args:
        job: what to train.
        world: this process.
        stop: set by signals.
    """

    def __init__(self, job: TrainJob, world: World, stop: StopRequest) -> None:
        self.job, self.world, self.stop = job, world, stop
        self.config = config = job.config
        self.spec = ModelSpec.load(job.graft_dir)
        self.mixture = Mixture.load(job.tokens_dir)
        if self.mixture.vocabulary_size > self.spec.vocabulary_size:
            raise DataError(
                "the tokens have ids that the model does not have",
                where=job.tokens_dir,
                got=f"vocabulary of {self.mixture.vocabulary_size}",
                expected=f"at most {self.spec.vocabulary_size} as in {job.graft_dir / 'model.json'}",
                fix="run the graft stage with the tokenizer that encoded the tokens",
            )
        self.steps = total_steps(self.mixture, config.global_batch, config.sequence_length)
        self.tokens_per_step = config.global_batch * config.sequence_length
        self.phases = resolve_phases(config, self.steps * self.tokens_per_step)
        self.layout = BatchLayout(
            micro_batch=config.micro_batch,
            global_batch=config.global_batch,
            eod_id=self.mixture.eod_id,
            reset_position_ids=config.reset_position_ids,
            reset_attention_mask=config.reset_attention_mask,
            mask_end_of_document=config.mask_end_of_document,
        )
        self.data = TrainingData(
            self.mixture,
            job.tokens_dir,
            job.work_dir / "samples",
            sequence_length=config.sequence_length,
            samples=self.steps * config.global_batch,
            seed=job.seed,
        )
        self.models = build_model(
            self.spec,
            config.parallel,
            precision=config.precision,
            recompute=config.recompute,
            z_loss=config.z_loss,
        )
        self.checkpoints = CheckpointStore(
            job.checkpoints_dir, config.keep_checkpoints, config.milestone_interval_steps
        )
        self.step = 0
        self._prepare()

    def _prepare(self) -> None:
        """Weights, gradient buffers, optimizer; from the newest whole checkpoint or from the graft."""
        config = self.config
        iteration, self.problems = self.checkpoints.newest_whole()
        if iteration is None:
            TrainingState(self.models, None, self.spec.vocabulary_size).load(
                self.job.graft_dir / "checkpoint", weights_only=True
            )
        self.wrapped = wrap_models(self.models, distributed_optimizer=config.optimizer.distributed)
        self.optimizer = Optimizer(config.optimizer, self.wrapped, config.precision)
        self.state = TrainingState(self.models, self.optimizer.megatron, self.spec.vocabulary_size)
        if iteration is not None:
            self.state.load(self.checkpoints.path(iteration))
            self.optimizer.prepare_state()
            self.step = iteration
        for model in self.models:
            model.config.finalize_model_grads_func = finalize_model_grads
            model.config.grad_scale_func = self.optimizer.megatron.scale_loss
            model.config.no_sync_func = (
                [wrapped.no_sync for wrapped in self.wrapped]
                if len(self.wrapped) > 1
                else self.wrapped[0].no_sync
            )
        self.forward_backward = get_forward_backward_func()

    def _run_micro_batches(self, batches: list[Batch], *, forward_only: bool) -> Tensor:
        """Run the schedule; returns [sum of losses in nats, tokens], zeros off the last pipeline stage."""
        data: Any = iterators(batches, len(self.wrapped))
        reports = self.forward_backward(
            forward_step_func=_forward_step,
            data_iterator=data if len(data) > 1 else data[0],
            model=self.wrapped if len(self.wrapped) > 1 else self.wrapped[0],
            num_microbatches=len(batches),
            seq_length=self.config.sequence_length,
            micro_batch_size=self.config.micro_batch,
            forward_only=forward_only,
        )
        if not reports:
            return torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
        return torch.stack(reports).sum(dim=0)

    def run(self) -> bool:
        """Train to the end, or until told to stop.

        Returns:
            Whether the run is finished.
        """
        reports = owns_loss()
        log: MetricsLog | None = None
        if reports:
            log = MetricsLog(
                self.job.metrics_path,
                self.step,
                attach(self.job.tracking) if self.job.tracking else NullTracker(),
                self.steps,
            )
            for problem in self.problems:
                log.say(f"{problem}; using an earlier one")
            if self.step:
                log.say(f"continuing from the checkpoint of step {self.step}")
        reader = BatchReader(self.data, self.layout, self.steps)
        try:
            return self._loop(reader, log)
        finally:
            reader.close()
            if log is not None:
                log.close()

    def _loop(self, reader: BatchReader, log: MetricsLog | None) -> bool:
        config = self.config
        interval = _Interval()
        saved = self.step
        while self.step < self.steps:
            phase = phase_at(self.phases, self.step * self.tokens_per_step)
            batches = reader.step(self.step)
            self.optimizer.zero_grad(self.wrapped)
            sums = sum_over_replicas(self._run_micro_batches(batches, forward_only=False))
            total, tokens = (float(value) for value in sums)
            loss = total / max(tokens, 1.0)
            norm = self.optimizer.gradient_norm()
            bad = not (math.isfinite(loss) and math.isfinite(norm))
            any_bad, stop = agree([float(bad), float(self.stop.requested)])
            if any_bad:
                raise TrainingError(
                    "the loss or its gradient is not finite",
                    where=f"step {self.step + 1}",
                    got=f"loss {loss}, gradient norm {norm}",
                    fix="lower train.optimizer.learning_rate; the last checkpoint is intact",
                )
            self.step += 1
            rate = phase.learning_rate(self.step * self.tokens_per_step)
            self.optimizer.step(rate, norm)
            interval.add(loss, norm, tokens)
            last = self.step == self.steps
            if log is not None and (self.step % config.log_interval_steps == 0 or last):
                self._report(log, interval, rate, phase, reader)
            if self.step % config.log_interval_steps == 0 or last:
                interval = _Interval()
            every = config.validation_interval_steps
            if every is not None and (self.step % every == 0 or last):
                self._validate(log)
                interval.restart()
            if last or stop or self.step % config.save_interval_steps == 0:
                self._save(log)
                saved = self.step
                interval.restart()
            if stop and not last:
                if log is not None:
                    log.say(f"stopped as asked after step {saved}; the checkpoint is saved")
                return False
        return True

    def _report(
        self, log: MetricsLog, interval: _Interval, rate: float, phase: Phase, reader: BatchReader
    ) -> None:
        seconds = max(interval.seconds(), 1e-9)
        loss = interval.loss()
        per_second = interval.tokens / seconds
        full, causal = flops_per_token(self.spec, self.config.sequence_length)
        factor = tokens_per_byte(self.mixture) / math.log(2)
        line = {
            "step": self.step,
            "consumed_tokens": self.step * self.tokens_per_step,
            "seconds": round(time.time(), 3),
            "phase": phase.name,
            "train/loss": loss,
            "train/bits_per_byte": loss * factor,
            "train/learning_rate": rate,
            "train/grad_norm": interval.norm,
            "train/consumed_tokens": self.step * self.tokens_per_step,
            "throughput/tokens_per_second": per_second,
            "throughput/tokens_per_second_per_process": per_second / self.world.size,
            "throughput/tflops_full_attention": per_second * full / 1e12,
            "throughput/tflops_causal_attention": per_second * causal / 1e12,
            "throughput/step_seconds": seconds / max(interval.steps, 1),
            "throughput/data_wait_seconds": reader.waited_seconds,
        }
        log.write(line)
        log.say(log.console_line(line))

    def _validate(self, log: MetricsLog | None) -> None:
        limit = self.config.validation_tokens_per_language
        line: dict[str, Any] = {
            "step": self.step,
            "consumed_tokens": self.step * self.tokens_per_step,
            "seconds": round(time.time(), 3),
        }
        texts = read_heldout(self.mixture, self.job.tokens_dir, limit)
        if not texts:
            return
        with _evaluating(self.models):
            for text in texts:
                windows = Windows.cut(text, self.config.sequence_length, self.mixture.bos_id)
                sums = sum_over_replicas(
                    self._run_micro_batches(windows.batches(self.layout), forward_only=True)
                )
                total, tokens = (float(value) for value in sums)
                line[f"validation/loss/{text.language}"] = total / max(tokens, 1.0)
                line[f"validation/bits_per_byte/{text.language}"] = windows.bits_per_byte(total)
        if log is not None:
            log.write(line)
            shown = "  ".join(
                f"{text.language} {line[f'validation/bits_per_byte/{text.language}']:.3f}" for text in texts
            )
            log.say(f"step {self.step}/{self.steps}  held-out bits/byte: {shown}")

    def _save(self, log: MetricsLog | None) -> None:
        start = time.monotonic()
        samples = self.step * self.config.global_batch
        common = {"iteration": self.step, "rng_state": torch.get_rng_state()}
        facts = {
            "consumed_samples": samples,
            "consumed_tokens": self.step * self.tokens_per_step,
            "consumed_samples_by_source": self.data.samples_by_source(0, samples),
            "seed": self.job.seed,
            "layout": self.config.parallel.model_dump(mode="json"),
            "processes": self.world.size,
            "precision": self.config.precision,
            "device": device_name(),
        }
        self.checkpoints.save(self.step, self.state, common, facts)
        if log is not None:
            log.say(f"step {self.step}/{self.steps}  checkpoint saved in {time.monotonic() - start:.1f} s")


class _Interval:
    """Sums since the last log line."""

    def __init__(self) -> None:
        self.total = 0.0
        self.tokens = 0.0
        self.norm = 0.0
        self.steps = 0
        self._before = 0.0
        self._start = time.monotonic()

    def add(self, loss: float, norm: float, tokens: float) -> None:
        """One step."""
        self.total += loss * tokens
        self.tokens += tokens
        self.norm = norm
        self.steps += 1
        now = time.monotonic()
        self._before += now - self._start
        self._start = now

    def restart(self) -> None:
        """Do not count the time since the last step (validation, checkpoint)."""
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Time spent in steps."""
        return self._before

    def loss(self) -> float:
        """Mean over tokens."""
        return self.total / max(self.tokens, 1.0)


def _forward_step(data: Iterator[Batch], model: Any) -> tuple[Any, Any]:
    """Megatron's forward step: one micro batch through one model chunk."""
    batch = next(data)
    output = model(
        input_ids=batch.tokens,
        position_ids=None,
        attention_mask=batch.boundaries,
        labels=batch.labels,
    )
    return output, partial(_sum_losses, batch.loss_mask)


def _sum_losses(loss_mask: Tensor, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What to minimise, tokens that count, and [sum of cross entropy, tokens] for the report."""
    objective, entropy = output
    tokens = loss_mask.sum()
    report = torch.stack([(entropy.detach().double() * loss_mask).sum(), tokens.double()])
    return (objective * loss_mask).sum(), tokens.to(torch.int), report


@contextlib.contextmanager
def _evaluating(models: list[Any]) -> Iterator[None]:
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model in models:
            model.train()
