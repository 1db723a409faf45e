"""Checkpoints of a run in the loop: when one was begun, what it says of the run, when it counts."""

from __future__ import annotations

from tsugiki.pretrain.checkpoint.store import CheckpointStore, device_name
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.training.guard import Deadline, Watchdog, collective_timeout
from tsugiki.pretrain.training.metrics.log import Log
from tsugiki.pretrain.training.metrics.progress import Progress
from tsugiki.pretrain.training.run import Run
from tsugiki.pretrain.training.samples.batches import TrainingData
from tsugiki.pretrain.training.step import TrainingStep


def open_store(run: Run) -> CheckpointStore:
    """The checkpoints directory of a run; every rank calls this."""
    config = run.config
    background = config.asynchronous_checkpoints
    return CheckpointStore(
        run.job.checkpoints_dir,
        config.keep_last_checkpoints,
        config.keep_checkpoints_every_steps,
        asynchronous=has_gpu() if background == "auto" else background,
        timeout=collective_timeout(config),
    )


class Checkpointing:
    """Begins and finishes checkpoints; every rank calls this alike.

    Args:
        run: facts of the run.
        store: where they go.
        step: model and optimizer.
        progress: where the run is.
        data: to count what was read of each source.
        log: of the run.
        watchdog: must see that a checkpoint takes its time.
        deadline: must know how long one takes.
    """

    def __init__(
        self,
        run: Run,
        store: CheckpointStore,
        step: TrainingStep,
        progress: Progress,
        data: TrainingData,
        log: Log,
        watchdog: Watchdog,
        deadline: Deadline,
    ) -> None:
        self.store = store
        self._run, self._step, self._progress, self._data = run, step, progress, data
        self._log, self._watchdog, self._deadline = log, watchdog, deadline

    def save(self, *, finish: bool) -> None:
        """Begin a checkpoint; a synchronous one is finished in any case.

        Args:
            finish: wait until it is complete.
        """
        self.finish()
        self._watchdog.alive(patient=True)
        run, step = self._run, self._progress.step
        samples = step * run.config.global_batch
        facts = {
            "consumed_samples": samples,
            "consumed_tokens": run.tokens(step),
            "consumed_samples_by_source": self._data.samples_by_source(0, samples),
            "data": self._data.facts(run),
            "skipped_batches": sorted(self._progress.skipped),
            "phase": run.phase(max(step - 1, 0)).name,
            "seed": run.job.seed,
            "layout": run.config.parallel.model_dump(mode="json"),
            "processes": run.world.size,
            "precision": run.config.precision,
            "device": device_name(),
            "tracking_runs": run.job.tracking_runs,
        }
        self.store.save(step, self._step.state, self._progress.common(), facts)
        if finish or not self.store.asynchronous:
            self.finish()
        self._watchdog.alive()

    def finish(self) -> None:
        """Wait for the checkpoint that was begun, if one was, and make it the latest."""
        self._watchdog.alive(patient=True)
        saved = self.store.finish()
        self._watchdog.alive()
        if saved is None:
            return
        self._deadline.save_took(saved.seconds)
        self._log.write(
            {
                "step": saved.iteration,
                "checkpoint/blocking_seconds": saved.blocking_seconds,
                "checkpoint/seconds": saved.seconds,
            }
        )
        self._log.say(
            f"step {saved.iteration}/{self._run.steps}  checkpoint saved in {saved.seconds:.1f} s,"
            f" training stood still for {saved.blocking_seconds:.1f} s"
        )
