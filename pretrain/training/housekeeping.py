"""What happens between steps: signals, phases, log lines, validation, checkpoints. None of it changes a weight."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from tsugiki.experiment.errors import TrainingError
from tsugiki.pretrain.planning.schedule import Phase
from tsugiki.pretrain.runtime.job import write_error
from tsugiki.pretrain.runtime.process_groups import all_reduce_max
from tsugiki.pretrain.runtime.signals import StopRequest
from tsugiki.pretrain.training.checkpointing import Checkpointing
from tsugiki.pretrain.training.guard import Deadline, Watchdog
from tsugiki.pretrain.training.metrics.log import Log
from tsugiki.pretrain.training.metrics.progress import Progress
from tsugiki.pretrain.training.metrics.throughput import Throughput
from tsugiki.pretrain.training.metrics.window import LogWindow
from tsugiki.pretrain.training.run import Run
from tsugiki.pretrain.training.step import Gradients, TrainingStep
from tsugiki.pretrain.training.validation import validate


class Signals(NamedTuple):
    """What any rank has seen during a step; the same on every rank.

    Attributes:
        stop: the run was asked to stop.
        ends_soon: the job's time ends before another step and its checkpoint would.
        writing: a checkpoint is still being written.
    """

    stop: bool
    ends_soon: bool
    writing: bool


class Housekeeping:
    """Everything around the steps of a rank; every rank calls this alike.

    Args:
        run: facts of the run.
        step: model and optimizer.
        progress: where the run is.
        checkpoints: of the run.
        throughput: puts log lines together.
        log: of the run.
        stop: set by signals.
        deadline: of the job.
        watchdog: of the run.
    """

    def __init__(
        self,
        run: Run,
        step: TrainingStep,
        progress: Progress,
        checkpoints: Checkpointing,
        throughput: Throughput,
        log: Log,
        stop: StopRequest,
        deadline: Deadline,
        watchdog: Watchdog,
    ) -> None:
        self._run, self._step, self._progress = run, step, progress
        self._checkpoints, self._throughput, self._log = checkpoints, throughput, log
        self._stop, self._deadline, self._watchdog = stop, deadline, watchdog
        self._phase: Phase | None = None
        self._steps_begun = 0
        self._logging_seconds = 0.0
        self._measuring_seconds = 0.0
        self._began = 0.0
        self._norms: dict[str, float] = {}

    # --- signals ---------------------------------------------------------------------------------

    def stopped_before_the_first_step(self) -> bool:
        """Whether any rank was asked to stop already."""
        if self._deadline.problem:
            self._log.say(self._deadline.problem)
        (stopped,) = all_reduce_max([float(self._stop.requested)])
        if stopped:
            self._log.say("stopped as asked before the first step")
        return bool(stopped)

    def signs(self) -> list[bool]:
        """What this rank tells the others of itself in a step: `stop`, `ends_soon` and `writing` of `Signals`."""
        return [self._stop.requested, self._deadline.save_now(), self._checkpoints.store.writing]

    def signals(self, seen: list[bool]) -> Signals:
        """What all ranks have told each other; the step's gradients are there.

        Args:
            seen: for each of :meth:`signs`, whether any rank has it.
        """
        self._deadline.step_took(time.monotonic() - self._began)
        return Signals(*seen)

    # --- at the beginning of a step ----------------------------------------------------------------

    def begin_step(self) -> Phase:
        """A sign of life; the phase of the step, entered when it is another one."""
        self._steps_begun += 1
        self._watchdog.alive(patient=self._steps_begun == 1)  # the first one compiles
        self._began = time.monotonic()
        phase = self._run.phase(self._progress.step)
        if phase is not self._phase:
            self._phase = phase
            self._step.enter(phase)
            if len(self._run.phases) > 1:
                self._log.say(f"phase {phase.name}: training {', '.join(phase.trains)}")
        self._say_mixture()
        return phase

    def _say_mixture(self) -> None:
        """Where the mixture changes with this step."""
        samples = self._progress.step * self._run.config.global_batch
        for number, stretch in enumerate(self._run.stretches or [], start=1):
            if samples == 0 and len(self._run.stretches or []) > 1:
                shares = ", ".join(
                    f"{source.name} {share:.1%}"
                    for source, share in zip(self._run.mixture.sources, stretch.shares, strict=True)
                    if share
                )
                self._log.say(f"mixture {number}: {shares}")
            samples -= stretch.samples

    def read_batch(self) -> None:
        """A sign of life between what a rank does alone and what all do together."""
        self._watchdog.alive(patient=self._steps_begun == 1)

    # --- what is due at the end of a step ----------------------------------------------------------

    @property
    def is_last(self) -> bool:
        """Whether the run has done all its steps."""
        return self._progress.step == self._run.steps

    @property
    def _logs(self) -> bool:
        return self._progress.step % self._run.config.log_interval_steps == 0 or self.is_last

    def finish_written_checkpoint(self, signals: Signals) -> None:
        """Make a checkpoint the latest that all ranks have written in the background."""
        if self._checkpoints.store.unfinished and not signals.writing:
            with _excluded(self._progress.window):
                self._checkpoints.finish()

    def measure(self) -> None:
        """Take the norms that the log line needs, while the gradients are there; before the update."""
        start = time.monotonic()
        self._norms = self._step.norms.measure() if self._logs else {}
        self._measuring_seconds = time.monotonic() - start

    def count(self, gradients: Gradients) -> None:
        """An ordinary step is done."""
        self._progress.window.add(gradients.loss, gradients.norm, gradients.tokens, gradients.measures)

    def discard(self) -> None:
        """A step was skipped: its norms are not those of the weights."""
        self._norms, self._measuring_seconds = {}, 0.0

    def log(self, learning_rate: float, phase: Phase, waited_seconds: float) -> None:
        """Write the line of a log window that ends here; without any ordinary step there is none."""
        if not self._logs:
            return
        start = time.monotonic()
        window = self._progress.window
        if window.steps:
            line = self._throughput.line(
                self._progress.step,
                window,
                learning_rate,
                phase,
                waited_seconds,
                self._norms,
                self._step.clock.take(),
            )
            self._log.window({**line, "throughput/logging_seconds": self._logging_seconds})
            for node in self._throughput.slow:
                self._log.say(str(node))
        self._logging_seconds = time.monotonic() - start + self._measuring_seconds
        self._progress.window = LogWindow()

    def validate(self) -> None:
        """Evaluate the held-out text where it is due."""
        every = self._run.config.validation_interval_steps
        if every is not None and (self._progress.step % every == 0 or self.is_last):
            with _excluded(self._progress.window):
                validate(self._run, self._step, self._progress.step, self._log, self._watchdog)

    def save(self, *, now: bool) -> None:
        """Write a checkpoint where it is due.

        Args:
            now: whatever the interval says, and wait until it is complete; as at the end of the run.
        """
        now = now or self.is_last
        if now or self._progress.step % self._run.config.save_interval_steps == 0:
            with _excluded(self._progress.window):
                self._checkpoints.save(finish=now)

    def say_stopped(self) -> None:
        """The checkpoint is written and the run ends early."""
        self._log.say(f"stopped as asked after step {self._progress.step}; the checkpoint is saved")


def leave_hang(run: Run, step: int, rank: int | None) -> None:
    """Leave the reason of a hang where the launcher finds it.

    Args:
        run: facts of the run.
        step: steps done.
        rank: the others wait for it; None: no rank can be named.
    """
    write_error(
        run.job.work_dir,
        run.world.rank if rank is None else rank,
        TrainingError(
            "training hangs",
            where=f"{'all ranks' if rank is None else f'rank {rank}, for which the others wait'}, after step {step}",
            got=f"no sign of life in {run.config.watchdog_seconds:.0f} s",
            expected="the stacks of all threads are in the ranks' logs, their last collectives beside them in "
            "flight_recorder_<rank>, which torch's `torchfrtrace` compares",
            fix="look for a dead node or a stuck file system; raise train.watchdog_seconds if a "
            "step may take longer, train.startup_watchdog_seconds for the first one and for checkpoints",
        ),
    )


@contextlib.contextmanager
def _excluded(window: LogWindow) -> Iterator[None]:
    """Time in here is not time of training steps."""
    start = time.monotonic()
    yield
    window.exclude(time.monotonic() - start)
