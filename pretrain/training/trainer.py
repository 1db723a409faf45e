"""The training loop of one rank."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from tsugiki.experiment.artefacts.mixture import Mixture
from tsugiki.experiment.errors import DataError, TrainingError
from tsugiki.experiment.model_spec import ModelSpec
from tsugiki.pretrain.checkpoint.store import CheckpointStore, TrainingState, device_name
from tsugiki.pretrain.model.backend import acceleration_of
from tsugiki.pretrain.model.gpt import build_model
from tsugiki.pretrain.model.trainable import base_rows
from tsugiki.pretrain.planning.schedule import Phase, phase_at, resolve_phases
from tsugiki.pretrain.runtime.job import TrainJob, write_error
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.runtime.process_groups import agree, finalize_gradients, owns_loss, sum_over_replicas
from tsugiki.pretrain.runtime.signals import StopRequest
from tsugiki.pretrain.runtime.world import World
from tsugiki.pretrain.training.batches import Batch, BatchLayout, BatchReader, TrainingData, iterators
from tsugiki.pretrain.training.freeze import RowControl
from tsugiki.pretrain.training.guard import Deadline, LossGuard, Watchdog, collective_timeout
from tsugiki.pretrain.training.metrics import Interval, MetricsLog
from tsugiki.pretrain.training.optimizer import Optimizer, wrap_models
from tsugiki.pretrain.training.row_norms import RowNorms
from tsugiki.pretrain.training.throughput import Observer, peak_flops
from tsugiki.pretrain.training.validation import Windows, read_heldout


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
        self.acceleration = acceleration_of(config)
        self.models = build_model(
            self.spec,
            config.parallel,
            precision=config.precision,
            recompute=config.recompute,
            z_loss=config.z_loss,
            acceleration=self.acceleration,
        )
        background = config.asynchronous_checkpoints
        self.checkpoints = CheckpointStore(
            job.checkpoints_dir,
            config.keep_checkpoints,
            config.milestone_interval_steps,
            asynchronous=has_gpu() if background == "auto" else background,
            timeout=collective_timeout(config.watchdog_seconds),
        )
        self.step = 0
        self.skipped: set[int] = set()
        """Batches, counted from 0, that no update was made for."""
        self.anomalies = 0
        self.guard = LossGuard(config.anomalies)
        self.interval = Interval()
        self.watchdog = Watchdog(config.watchdog_seconds, self._leave_hang)
        self._prepare()

    def _leave_hang(self, seconds: float) -> None:
        write_error(
            self.job.work_dir,
            self.world.rank,
            TrainingError(
                "training hangs",
                where=f"rank {self.world.rank}, after step {self.step}",
                got=f"no step finished in {seconds:.0f} s",
                expected="stacks of all threads are in the rank's log",
                fix="look for a dead node or a stuck file system; raise train.watchdog_seconds if a "
                "step may take longer",
            ),
        )

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
            common = self.state.load(self.checkpoints.path(iteration))
            self.optimizer.prepare_state()
            torch.set_rng_state(common["rng_state"])
            self.skipped = set(common["skipped_batches"])
            self.anomalies = common["anomalies"]
            self.guard.recent.extend(common["recent_losses"])
            self.interval = Interval(**common["interval"])
            self.step = iteration
        rows = self.spec.vocabulary_size
        new_rows = (base_rows(self.job.graft_dir, rows), rows)
        self._control_rows(new_rows)
        self.norms = RowNorms(
            self.optimizer.megatron,
            self.models,
            new_rows,
            self.spec.tied_embeddings,
            config.optimizer.distributed,
        )
        for model in self.models:
            model.config.finalize_model_grads_func = finalize_gradients
            model.config.grad_scale_func = self.optimizer.megatron.scale_loss
            model.config.no_sync_func = (
                [wrapped.no_sync for wrapped in self.wrapped]
                if len(self.wrapped) > 1
                else self.wrapped[0].no_sync
            )
        self.forward_backward = get_forward_backward_func()

    def _control_rows(self, new_rows: tuple[int, int]) -> None:
        """Let the phases decide what moves, where any of them or a multiplier asks for it."""
        multiplier = self.config.optimizer.new_rows_learning_rate_multiplier
        if multiplier == 1 and all(phase.trains == ("all",) for phase in self.phases):
            return
        self.optimizer.control_rows(
            RowControl(
                self.optimizer.megatron,
                self.models,
                self.spec.layers,
                new_rows,
                multiplier,
                self.spec.tied_embeddings,
            )
        )

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
                self.steps,
            )
            for problem in self.problems:
                log.say(f"{problem}; using an earlier one")
            if self.problems:
                log.write(
                    {
                        "step": self.step,
                        "event": "fallback",
                        "reason": "; ".join(self.problems),
                        "fallback/damaged_checkpoints": len(self.problems),
                    }
                )
            if self.step:
                log.say(f"continuing from the checkpoint of step {self.step}")
        reader = BatchReader(self.data, self.layout, self.steps)
        config = self.config
        self.observer = Observer(
            self.spec,
            self.mixture,
            config.sequence_length,
            self.tokens_per_step,
            self.world.size,
            self.phases,
            peak_flops(config.peak_tflops, config.precision),
        )
        try:
            finished = self._loop(reader, log)
        finally:
            self.watchdog.close()
            reader.close()
            if log is not None:
                log.close()
        torch.distributed.barrier()  # rank 0 reads metrics.jsonl, which another rank may have written
        return finished

    def _loop(self, reader: BatchReader, log: MetricsLog | None) -> bool:
        config = self.config
        guard, interval, deadline = self.guard, self.interval, Deadline()
        if log is not None and deadline.problem:
            log.say(deadline.problem)
        if agree([float(self.stop.requested)])[0]:
            if log is not None:
                log.say("stopped as asked before the first step")
            return False
        interval.begin()
        logging_seconds = 0.0
        phase: Phase | None = None
        while self.step < self.steps:
            self.watchdog.alive()
            started = time.monotonic()
            current = phase_at(self.phases, self.step * self.tokens_per_step)
            if current is not phase:
                phase = current
                self._enter(phase, log)
            batches = reader.step(self.step)
            self.optimizer.zero_grad(self.wrapped)
            sums = sum_over_replicas(self._run_micro_batches(batches, forward_only=False))
            total, tokens = sums.tolist()  # the host waits for the GPU here and for the norm, once a step
            loss = total / max(tokens, 1.0)
            norm = self.optimizer.gradient_norm()
            # Every rank sees the same loss and norm; only the signals and clocks differ.
            trouble = guard.judge(loss, norm)
            deadline.step_took(time.monotonic() - started)
            bad, stop, save, writing = agree(
                [
                    float(trouble is not None),
                    float(self.stop.requested),
                    float(deadline.save_now()),
                    float(self.checkpoints.writing),
                ]
            )
            self.step += 1
            last = self.step == self.steps
            logs = self.step % config.log_interval_steps == 0 or last
            if self.checkpoints.unfinished and not writing:
                with _excluded(interval):
                    self._finish_save(log, deadline)
            rate = phase.learning_rate(self.step * self.tokens_per_step)
            if bad:
                self._handle_anomaly(trouble or "another rank reports an anomaly", loss, log, deadline)
                # The weights are those of an earlier step: a kill must not bring the later ones back.
                save = save or config.anomalies.action == "rollback"
            else:
                guard.accept(loss)
                measuring = time.monotonic()
                norms = self.norms.measure() if logs else {}
                measured = time.monotonic() - measuring
                self.optimizer.step(rate, norm)
                interval.add(loss, norm, tokens)
            if logs:
                writing_line = time.monotonic()
                if interval.steps:
                    line = self.observer.line(
                        self.step, interval, rate, phase, reader.waited_seconds, {} if bad else norms
                    )
                    if log is not None:
                        log.write({**line, "throughput/logging_seconds": logging_seconds})
                        log.say(log.console_line(line))
                logging_seconds = time.monotonic() - writing_line + (0.0 if bad else measured)
                interval = self.interval = Interval()
            every = config.validation_interval_steps
            if every is not None and (self.step % every == 0 or last):
                with _excluded(interval):
                    self._validate(log)
            if last or stop or save or self.step % config.save_interval_steps == 0:
                with _excluded(interval):
                    self._save(log, deadline)
                    if last or stop or save:
                        self._finish_save(log, deadline)
            if stop and not last:
                if log is not None:
                    log.say(f"stopped as asked after step {self.step}; the checkpoint is saved")
                return False
        return True

    def _enter(self, phase: Phase, log: MetricsLog | None) -> None:
        """Begin a phase, or go on in it."""
        if self.optimizer.rows is not None:
            self.optimizer.rows.select(phase.trains)
        if log is not None and len(self.phases) > 1:
            log.say(f"phase {phase.name}: training {', '.join(phase.trains)}")

    def _handle_anomaly(self, trouble: str, loss: float, log: MetricsLog | None, deadline: Deadline) -> None:
        """Skip the step just computed, go back, or give up, as configured; recorded in any case."""
        config = self.config.anomalies
        action = config.action
        batch = self.step - 1
        first = batch
        self.anomalies += 1
        text = f"step {self.step}: {trouble}"
        give_up = action == "stop" or self.anomalies > config.maximum_anomalies
        if not give_up and action == "rollback":
            self._finish_save(log, deadline)
            first = self._roll_back(batch - config.rollback_steps + 1)
            text += f"; back to the weights of step {first}, its data and that since then skipped"
        elif not give_up:
            text += "; its batch is skipped"
        self.skipped.update(range(first, self.step))
        if log is not None:
            log.write(
                {
                    "step": self.step,
                    "event": "stop" if give_up else action,
                    "reason": trouble,
                    "anomaly/count": self.anomalies,
                    "anomaly/loss": loss if math.isfinite(loss) else None,
                    "anomaly/first_skipped_step": first + 1,
                    "anomaly/skipped_steps": self.step - first,
                }
            )
        if give_up:
            self._finish_save(log, deadline)
            torch.distributed.barrier()  # the line is written before rank 0, which may send it, ends
            raise TrainingError(
                "the loss is not what it should be",
                where=f"step {self.step}",
                got=f"{trouble} (anomaly {self.anomalies})",
                fix="lower train.optimizer.learning_rate, look at the data of that step, or set "
                "train.anomalies; the last checkpoint is intact",
            )
        if log is not None:
            log.say(text)

    def _roll_back(self, at_most: int) -> int:
        """Load weights and moments of the newest whole checkpoint of that step or an earlier one, else of the
        oldest one, else the weights of the start; returns the step."""
        iteration, _ = self.checkpoints.newest_whole(at_most)
        if iteration is None:
            TrainingState(self.models, None, self.spec.vocabulary_size).load(
                self.job.graft_dir / "checkpoint", weights_only=True
            )
            self.optimizer.forget()
            return 0
        self.state.load(self.checkpoints.path(iteration))
        self.optimizer.prepare_state()
        return iteration

    def _validate(self, log: MetricsLog | None) -> None:
        line: dict[str, Any] = {
            "step": self.step,
            "consumed_tokens": self.step * self.tokens_per_step,
        }
        texts = read_heldout(self.mixture, self.job.tokens_dir, self.config.validation_bytes_per_language)
        if not texts:
            return
        with _evaluating(self.models):
            for text in texts:
                self.watchdog.alive()
                windows = Windows.cut(text, self.config.sequence_length, self.mixture.bos_id)
                sums = sum_over_replicas(
                    self._run_micro_batches(windows.batches(self.layout), forward_only=True)
                )
                total, tokens = (float(value) for value in sums)
                line[f"validation/loss/{text.language}"] = total / max(tokens, 1.0)
                if (bits := windows.bits_per_byte(total)) is not None:
                    line[f"validation/bits_per_byte/{text.language}"] = bits
        if log is not None:
            log.write(line)
            for measure, unit in (("bits_per_byte", "bits/byte"), ("loss", "loss")):
                shown = [
                    f"{text.language} {line[f'validation/{measure}/{text.language}']:.3f}"
                    for text in texts
                    if (text.bytes is None) == (measure == "loss")
                ]
                if shown:
                    log.say(f"step {self.step}/{self.steps}  held-out {unit}: {'  '.join(shown)}")

    def _save(self, log: MetricsLog | None, deadline: Deadline) -> None:
        """Begin a checkpoint; a synchronous one is finished."""
        self._finish_save(log, deadline)
        self.watchdog.alive()
        samples = self.step * self.config.global_batch
        common = {
            "iteration": self.step,
            "rng_state": torch.get_rng_state(),
            "skipped_batches": sorted(self.skipped),
            "anomalies": self.anomalies,
            "recent_losses": list(self.guard.recent),
            "interval": self.interval.sums(),
        }
        facts = {
            "consumed_samples": samples,
            "consumed_tokens": self.step * self.tokens_per_step,
            "consumed_samples_by_source": self.data.samples_by_source(0, samples),
            "skipped_batches": sorted(self.skipped),
            "phase": phase_at(self.phases, max(self.step - 1, 0) * self.tokens_per_step).name,
            "seed": self.job.seed,
            "layout": self.config.parallel.model_dump(mode="json"),
            "processes": self.world.size,
            "precision": self.config.precision,
            "device": device_name(),
            "tracking_runs": self.job.tracking_runs,
        }
        self.checkpoints.save(self.step, self.state, common, facts)
        if not self.checkpoints.asynchronous:
            self._finish_save(log, deadline)

    def _finish_save(self, log: MetricsLog | None, deadline: Deadline) -> None:
        """Wait for the checkpoint that was begun, if one was, and make it the latest."""
        self.watchdog.alive()
        saved = self.checkpoints.finish()
        if saved is None:
            return
        deadline.save_took(saved.seconds)
        if log is not None:
            log.write(
                {
                    "step": saved.iteration,
                    "checkpoint/blocking_seconds": saved.blocking_seconds,
                    "checkpoint/seconds": saved.seconds,
                }
            )
            log.say(
                f"step {saved.iteration}/{self.steps}  checkpoint saved in {saved.seconds:.1f} s,"
                f" training stood still for {saved.blocking_seconds:.1f} s"
            )


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
def _excluded(interval: Interval) -> Iterator[None]:
    """Time in here is not time of training steps."""
    start = time.monotonic()
    yield
    interval.exclude(time.monotonic() - start)


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
