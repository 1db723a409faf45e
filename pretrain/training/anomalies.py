"""What becomes of a step whose loss is not what it should be: skipped, taken back, or the end of the run."""

from __future__ import annotations

import math

from tsugiki.experiment.errors import TrainingError
from tsugiki.pretrain.runtime.process_groups import barrier
from tsugiki.pretrain.training.checkpointing import Checkpointing
from tsugiki.pretrain.training.metrics.log import Log
from tsugiki.pretrain.training.metrics.progress import Progress
from tsugiki.pretrain.training.run import Run
from tsugiki.pretrain.training.step import TrainingStep


class AnomalyHandler:
    """Does what ``train.anomalies`` says, and records it. Every rank calls this alike.

    Args:
        run: facts of the run.
        step: model and optimizer.
        progress: where the run is.
        checkpoints: to go back to.
        log: of the run.
    """

    def __init__(
        self, run: Run, step: TrainingStep, progress: Progress, checkpoints: Checkpointing, log: Log
    ) -> None:
        self._config = run.config.anomalies
        self._step, self._progress, self._checkpoints, self._log = step, progress, checkpoints, log

    @property
    def rolls_back(self) -> bool:
        """Whether the weights after an anomaly are those of an earlier step."""
        return self._config.action == "rollback"

    def handle(self, trouble: str, loss: float) -> None:
        """Skip the step just computed, go back, or give up.

        Args:
            trouble: what is wrong.
            loss: of the step.

        Raises:
            TrainingError: the run ends here.
        """
        config, progress = self._config, self._progress
        batch = progress.step - 1
        first = batch
        progress.anomalies += 1
        gives_up = config.action == "stop" or progress.anomalies > config.maximum_anomalies
        consequence = "its batch is skipped"
        if not gives_up and config.action == "rollback":
            first = self._roll_back(batch - config.rollback_steps + 1)
            consequence = f"back to the weights of step {first}, its data and that since then skipped"
        progress.skipped.update(range(first, progress.step))
        self._log.write(
            {
                "step": progress.step,
                "event": "stop" if gives_up else config.action,
                "reason": trouble,
                "anomaly/count": progress.anomalies,
                "anomaly/loss": loss if math.isfinite(loss) else None,
                "anomaly/first_skipped_step": first + 1,
                "anomaly/skipped_steps": progress.step - first,
            }
        )
        if gives_up:
            self._give_up(trouble)
        self._log.say(f"step {progress.step}: {trouble}; {consequence}")

    def _roll_back(self, at_most: int) -> int:
        """Load weights and moments of the newest complete checkpoint of that step or an earlier one, else of
        the oldest one, else the weights of the start; returns the step."""
        self._checkpoints.finish()
        iteration, _ = self._checkpoints.store.newest_complete(at_most)
        if iteration is None:
            self._step.start_over()
            return 0
        self._step.load(self._checkpoints.store.path(iteration))
        return iteration

    def _give_up(self, trouble: str) -> None:
        self._checkpoints.finish()
        barrier()  # the line is written before rank 0, which sends it to the trackers, ends
        raise TrainingError(
            "the loss is not what it should be",
            where=f"step {self._progress.step}",
            got=f"{trouble} (anomaly {self._progress.anomalies})",
            fix="lower train.optimizer.learning_rate, look at the data of that step, or set "
            "train.anomalies; the last checkpoint is intact",
        )
