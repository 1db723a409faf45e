"""One step: forward and backward through the pipeline, gradient norm, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from tsugiki.pretrain.checkpoint.intact import require_intact
from tsugiki.pretrain.checkpoint.state import TrainingState
from tsugiki.pretrain.model.backend import acceleration_of
from tsugiki.pretrain.model.gpt import build_model
from tsugiki.pretrain.model.trainable import base_rows
from tsugiki.pretrain.planning.schedule import Phase
from tsugiki.pretrain.runtime.process_groups import all_reduce_sum, finalize_gradients, reports_loss
from tsugiki.pretrain.training.continuing import find_origin
from tsugiki.pretrain.training.freeze import RowControl
from tsugiki.pretrain.training.metrics.row_norms import RowNorms
from tsugiki.pretrain.training.metrics.stragglers import StepClock
from tsugiki.pretrain.training.optimizer import Optimizer, wrap_models
from tsugiki.pretrain.training.preference.objective import PreferenceLoss
from tsugiki.pretrain.training.run import Run
from tsugiki.pretrain.training.samples.batches import Batch
from tsugiki.pretrain.training.samples.reader import iterators


class Gradients(NamedTuple):
    """What a forward and backward pass gave; the same on every rank.

    Attributes:
        loss: mean cross entropy in nats, or mean loss of the pairs.
        tokens: that count in it, or pairs.
        norm: of the gradients, before clipping.
        seen: for each sign, whether any rank has seen it.
        measures: sums over the pairs of what the objective reports of them, by name.
    """

    loss: float
    tokens: float
    norm: float
    seen: list[bool]
    measures: dict[str, float]


class Evaluation(NamedTuple):
    """What an evaluation gave; the same on every rank.

    Attributes:
        total: sum of losses in nats.
        tokens: that count in it, or pairs.
        measures: as in :class:`Gradients`.
    """

    total: float
    tokens: float
    measures: dict[str, float]


class TrainingStep:
    """Model chunks, gradient buffers and optimizer of one rank, and what a step does with them.

    Args:
        run: facts of the run.
        checkpoint: complete checkpoint to go on from; None = the weights of the graft.
    """

    def __init__(self, run: Run, checkpoint: Path | None) -> None:
        self.run = run
        config = run.config
        self._objective: Objective = (
            NextToken()
            if config.objective == "next_token"
            else PreferenceLoss(config.objective, config.preference)
        )
        self.models = build_model(
            run.spec,
            config.parallel,
            precision=config.precision,
            recompute=config.recompute,
            recompute_layers=config.recompute_layers,
            z_loss=config.z_loss,
            acceleration=acceleration_of(config),
        )
        if checkpoint is None and run.job.continue_from is None:
            self._load_graft()
        self.wrapped = wrap_models(self.models, distributed_optimizer=config.optimizer.distributed)
        self.optimizer = Optimizer(config.optimizer, self.wrapped, config.precision)
        self.state = TrainingState(self.models, self.optimizer.megatron, run.spec.vocabulary_size)
        self.restored: dict[str, Any] = {} if checkpoint is None else self.load(checkpoint)
        """What else the checkpoint keeps; empty at the start of a run."""
        if checkpoint is None and run.job.continue_from is not None:
            self._continue(run.job.continue_from)
        rows = run.spec.vocabulary_size
        new_rows = (base_rows(run.job.graft_dir, rows), rows)
        self._control_rows(new_rows)
        self.norms = RowNorms(
            self.optimizer.megatron,
            self.models,
            new_rows,
            run.spec.tied_embeddings,
            config.optimizer.distributed,
        )
        self.clock = StepClock()
        for model in self.models:
            model.config.timers = self.clock
            model.config.finalize_model_grads_func = finalize_gradients
            model.config.grad_scale_func = self.optimizer.megatron.scale_loss
            model.config.no_sync_func = (
                [wrapped.no_sync for wrapped in self.wrapped]
                if len(self.wrapped) > 1
                else self.wrapped[0].no_sync
            )
        self._schedule = get_forward_backward_func()

    # --- a step ----------------------------------------------------------------------------------

    def gradients(self, batches: list[Batch], signs: Callable[[], list[bool]]) -> Gradients:
        """Forward and backward over the micro batches of this rank.

        Loss, norm and signs of all ranks are added up in one all-reduce, and the host waits for it: once a step.

        Args:
            batches: of this step.
            signs: gives what this rank tells the others, asked when its work is under way.
        """
        self.clock.begin()
        self.optimizer.zero_grad(self.wrapped)
        sums = self._run_micro_batches(batches, forward_only=False)
        own = torch.tensor([float(sign) for sign in signs()], dtype=torch.float64)
        numbers = torch.cat(
            [
                sums if reports_loss() else torch.zeros_like(sums),
                self.optimizer.squared_norm().view(1),
                own.to(sums.device, non_blocking=True),
            ]
        )
        torch.distributed.all_reduce(numbers)
        measures = self._objective.measures
        total, tokens, *rest = numbers.tolist()
        measured, (square, *seen) = rest[: len(measures)], rest[len(measures) :]
        self.clock.end()
        return Gradients(
            total / max(tokens, 1.0),
            tokens,
            math.sqrt(square),
            [sign > 0 for sign in seen],
            dict(zip(measures, measured, strict=True)),
        )

    def update(self, learning_rate: float, gradients: Gradients) -> None:
        """Let the optimizer use the gradients."""
        self.optimizer.step(learning_rate, gradients.norm)

    def enter(self, phase: Phase) -> None:
        """Let only what the phase trains move."""
        if self.optimizer.rows is not None:
            self.optimizer.rows.select(phase.trains)

    def evaluate(self, batches: list[Batch]) -> Evaluation:
        """Sums over these batches, without gradients; inside :meth:`evaluating`."""
        # Held-out text is text also where pairs are trained on.
        objective = self._objective if batches[0].pairs is not None else NextToken()
        sums = all_reduce_sum(self._run_micro_batches(batches, forward_only=True, objective=objective))
        total, tokens, *measured = sums.tolist()
        return Evaluation(total, tokens, dict(zip(objective.measures, measured, strict=True)))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model evaluates in here."""
        for model in self.models:
            model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for model in self.models:
                model.train()

    def _run_micro_batches(
        self, batches: list[Batch], *, forward_only: bool, objective: Objective | None = None
    ) -> Tensor:
        """Run the schedule; returns [sum of losses in nats, tokens, measures], zeros off the last pipeline stage."""
        objective = objective or self._objective
        data: Any = iterators(batches, len(self.wrapped))
        reports = self._schedule(
            forward_step_func=partial(forward_step, objective=objective),
            data_iterator=data if len(data) > 1 else data[0],
            model=self.wrapped if len(self.wrapped) > 1 else self.wrapped[0],
            num_microbatches=len(batches),
            seq_length=self.run.config.sequence_length,
            micro_batch_size=self.run.config.micro_batch,
            forward_only=forward_only,
        )
        if not reports:
            size = 2 + len(objective.measures)
            return torch.zeros(size, dtype=torch.float64, device=torch.cuda.current_device())
        return torch.stack(reports).sum(dim=0)

    # --- weights and moments ---------------------------------------------------------------------

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Read weights and moments; returns what else the checkpoint keeps."""
        common = self.state.load(checkpoint)
        self.optimizer.prepare_state()
        return common

    def start_over(self) -> None:
        """What the run began with: the graft and no moments, or another run's checkpoint."""
        if self.run.job.continue_from is not None:
            self._continue(self.run.job.continue_from)
            return
        self._load_graft()
        self.optimizer.forget()

    def _continue(self, setting: str) -> None:
        """Another run's weights, and its moments where they are wanted; nothing of its progress."""
        checkpoint = find_origin(setting).checkpoint
        self._require_intact(checkpoint)
        if not self.run.config.continue_moments:
            self.state.load(checkpoint, weights_only=True)
            self.optimizer.forget()
            return
        self.load(checkpoint)
        # Megatron loads these with the moments; they are this run's own. Rate and decay are set at every step.
        config = self.run.config.optimizer
        for optimizer in self.optimizer.torch_optimizers():
            for group in optimizer.param_groups:
                group["betas"], group["eps"] = config.betas, config.epsilon

    def _load_graft(self) -> None:
        checkpoint = self.run.job.graft_dir / "checkpoint"
        self._require_intact(checkpoint)
        TrainingState(self.models, None, self.run.spec.vocabulary_size).load(checkpoint, weights_only=True)

    @staticmethod
    def _require_intact(checkpoint: Path) -> None:
        require_intact(path for path in checkpoint.iterdir() if path.is_file())

    def _control_rows(self, new_rows: tuple[int, int]) -> None:
        """Let the phases decide what moves, where any of them or a multiplier asks for it."""
        multiplier = self.run.config.optimizer.new_rows_learning_rate_multiplier
        if multiplier == 1 and all(phase.trains == ("all",) for phase in self.run.phases):
            return
        self.optimizer.control_rows(
            RowControl(
                self.optimizer.megatron,
                self.models,
                self.run.spec.layers,
                new_rows,
                multiplier,
                self.run.spec.tied_embeddings,
            )
        )


def forward_step(data: Iterator[Batch], model: Any, *, objective: Any = None) -> tuple[Any, Any]:
    """Megatron's forward step: one micro batch through one model chunk.

    Args:
        data: gives the micro batch.
        model: the chunk.
        objective: called with the batch and the chunk's output where that is the loss of tokens; None = the next
            token.
    """
    batch = next(data)
    output = model(
        input_ids=batch.tokens,
        position_ids=None,
        attention_mask=batch.boundaries,
        labels=batch.labels,
    )
    return output, partial(objective or NextToken(), batch)


class NextToken:
    """The mean cross entropy of the tokens that count in the global batch.

    Attributes:
        measures: it reports nothing else.
    """

    measures: tuple[str, ...] = ()

    def __call__(self, batch: Batch, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What to minimise, tokens that count, and [sum of cross entropy, tokens] for the report."""
        objective, entropy = output
        tokens = batch.loss_mask.sum()
        report = torch.stack([(entropy.detach().double() * batch.loss_mask).sum(), tokens.double()])
        return (objective * batch.loss_mask).sum(), tokens.to(torch.int), report


Objective = NextToken | PreferenceLoss
