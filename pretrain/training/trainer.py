"""The training loop of one rank.

A step reads a batch and makes gradients (:mod:`~tsugiki.pretrain.training.step`), the loss is judged
(:mod:`~tsugiki.pretrain.training.anomalies`), the weights are updated, and then comes what is due between steps
(:mod:`~tsugiki.pretrain.training.housekeeping`): log line, validation, checkpoint.
"""

from __future__ import annotations

from tsugiki.pretrain.checkpoint.intact import require_intact
from tsugiki.pretrain.runtime.job import TrainJob
from tsugiki.pretrain.runtime.peers import Peers
from tsugiki.pretrain.runtime.process_groups import barrier
from tsugiki.pretrain.runtime.signals import StopRequest
from tsugiki.pretrain.runtime.world import World
from tsugiki.pretrain.training.anomalies import AnomalyHandler
from tsugiki.pretrain.training.checkpointing import Checkpointing, open_store
from tsugiki.pretrain.training.guard import Deadline, Watchdog
from tsugiki.pretrain.training.housekeeping import Housekeeping, leave_hang
from tsugiki.pretrain.training.metrics.log import open_log
from tsugiki.pretrain.training.metrics.profile import PROFILES_NAME, Profile
from tsugiki.pretrain.training.metrics.progress import Progress
from tsugiki.pretrain.training.metrics.throughput import Throughput
from tsugiki.pretrain.training.run import Run
from tsugiki.pretrain.training.samples.batches import BatchLayout, TrainingData
from tsugiki.pretrain.training.samples.continued_data import read_before
from tsugiki.pretrain.training.samples.ledger import said
from tsugiki.pretrain.training.samples.reader import BatchReader
from tsugiki.pretrain.training.step import TrainingStep


class Trainer:
    """Everything one rank holds during training: from the newest complete checkpoint, or from the graft.

    Args:
        job: what to train.
        world: this process.
        stop: set by signals.
        peers: the other ranks, who are told of a hang.
    """

    def __init__(self, job: TrainJob, world: World, stop: StopRequest, peers: Peers) -> None:
        self._run = run = Run.load(job, world)
        require_intact(run.token_files)
        self._data = TrainingData.of(run, read_before(run))
        self._progress = progress = Progress(run.config.anomalies)
        self._watchdog = watchdog = Watchdog(
            run.config.watchdog_seconds, run.config.startup_watchdog_seconds, lambda _: peers.hangs()
        )
        peers.position = lambda: watchdog.signs
        peers.blamed = lambda rank: leave_hang(run, progress.step, rank)
        self._store = open_store(run)
        newest, self._problems = self._store.newest_complete()
        self._step = TrainingStep(run, None if newest is None else self._store.path(newest))
        progress.restore(self._step.restored)
        self._profile = Profile(
            run.config.profile, world.rank, run.job.output_dir / PROFILES_NAME, self._step.clock
        )
        self._stop = stop

    def run(self) -> bool:
        """Train to the end, or until told to stop.

        Returns:
            Whether the run is finished.
        """
        run = self._run
        log = open_log(run.job.metrics_path, self._progress.step, run.steps, self._problems)
        if run.job.continue_from is not None and self._progress.step == 0:
            log.say(f"continuing from {run.job.continue_from}")
            for source, what in said(run.job.output_dir).items():
                log.say(f"  {source}: {what}")
        log.packed(self._data.packing)
        reader = BatchReader(self._data, BatchLayout.of(run.config, run.mixture.eod_id), run.steps)
        deadline = Deadline()
        checkpoints = Checkpointing(
            run, self._store, self._step, self._progress, self._data, log, self._watchdog, deadline
        )
        anomalies = AnomalyHandler(run, self._step, self._progress, checkpoints, log)
        housekeeping = Housekeeping(
            run, self._step, self._progress, checkpoints, Throughput.of(run), log, self._stop, deadline,
            self._watchdog,
        )  # fmt: skip
        try:
            finished = self._loop(reader, anomalies, housekeeping)
        finally:
            self._profile.close()
            self._watchdog.close()
            reader.close()
            log.close()
        barrier()  # rank 0 reads metrics.jsonl, which another rank may have written
        return finished

    def _loop(self, reader: BatchReader, anomalies: AnomalyHandler, housekeeping: Housekeeping) -> bool:
        run, step, progress = self._run, self._step, self._progress
        if housekeeping.stopped_before_the_first_step():
            return False
        progress.window.begin()
        while progress.step < run.steps:
            self._profile.begin(progress.step + 1)
            phase = housekeeping.begin_step()
            batch = reader.step(progress.step)
            housekeeping.read_batch()
            gradients = step.gradients(batch, housekeeping.signs)
            signals = housekeeping.signals(gradients.seen)
            trouble = progress.guard.judge(gradients.loss, gradients.norm)  # alike on all ranks
            progress.step += 1
            housekeeping.finish_written_checkpoint(signals)
            learning_rate = phase.learning_rate(run.tokens(progress.step))
            if trouble is not None:
                anomalies.handle(trouble, gradients.loss)
                housekeeping.discard()
            else:
                progress.guard.accept(gradients.loss)
                housekeeping.measure()
                step.update(learning_rate, gradients)
                housekeeping.count(gradients)

            housekeeping.log(learning_rate, phase, reader.waited_seconds)
            housekeeping.validate()
            # After going back the weights are those of an earlier step: a kill must not bring the later ones back.
            went_back = trouble is not None and anomalies.rolls_back
            housekeeping.save(now=signals.stop or signals.ends_soon or went_back)
            if trace := self._profile.end(progress.step):
                print(f"trace of steps written: {trace}", flush=True)
            if signals.stop and not housekeeping.is_last:
                housekeeping.say_stopped()
                return False
        return True
